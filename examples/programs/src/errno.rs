//! Linux's error numbers.

use core::fmt;

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident $number:literal)*) => {
        impl Errno {
            $(#[doc = stringify!($name)] pub const $name: Self = Self($number);)*
        }

        impl fmt::Display for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($number => f.write_str(stringify!($name)),)*
                    other => write!(f, "error {other}"),
                }
            }
        }
    };
}

errnos! {
    EPERM 1 ENOENT 2 ESRCH 3 EINTR 4 EIO 5 EBADF 9 ECHILD 10 EAGAIN 11 ENOMEM 12 EACCES 13 EFAULT 14 EBUSY 16 EEXIST 17 ENODEV 19
    EISDIR 21 EINVAL 22 ENFILE 23 EMFILE 24 EFBIG 27 ENOSPC 28 ESPIPE 29 EROFS 30 ERANGE 34 ENAMETOOLONG 36 ENOSYS 38
    EOVERFLOW 75 EOPNOTSUPP 95
}

impl core::error::Error for Errno {}

impl Errno {
    /// What a kernel call answered, taken apart.
    pub(crate) fn check(answer: i64) -> Result<u64, Self> {
        match answer {
            -4095..=-1 => Err(Self(-answer as i32)),
            value => Ok(value as u64),
        }
    }
}
