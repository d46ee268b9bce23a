//! A range of memory as a byte string.

use core::fmt;

use crate::{Addr, Calls, System};

/// Bytes that lie in memory, and are loaded as they are looked at.
pub(crate) struct Bytes<'s, S> {
    sys: &'s S,
    addr: Addr,
    len: u64,
}

impl<S> Clone for Bytes<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Bytes<'_, S> {}

impl<'s, S: System> Bytes<'s, S> {
    pub(crate) fn new(sys: &'s S, addr: Addr, len: u64) -> Self {
        Self { sys, addr, len }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn get(&self, at: u64) -> Option<u8> {
        (at < self.len).then(|| self.sys.load_u8(self.addr + at))
    }

    /// A part, as far as it is there.
    pub(crate) fn slice(&self, from: u64, to: u64) -> Self {
        let (from, to) = (from.min(self.len), to.min(self.len));
        Self { addr: self.addr + from, len: to.saturating_sub(from), ..*self }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u8> + use<'s, S> {
        (0..self.len).filter_map(move |at| self.get(at))
    }

    /// The parts between line ends.
    pub(crate) fn lines(self) -> impl Iterator<Item = Self> + use<'s, S> {
        let mut rest = self;
        core::iter::from_fn(move || {
            if rest.len == 0 {
                return None;
            }
            let end = rest.iter().position(|byte| byte == b'\n').map_or(rest.len, |at| at as u64);
            let line = rest.slice(0, end);
            rest = rest.slice(end + 1, rest.len);
            Some(line)
        })
    }

    pub(crate) fn starts_with(&self, prefix: &[u8]) -> bool {
        prefix.iter().zip(0..).all(|(&byte, at)| self.get(at) == Some(byte))
    }

    /// Whether two ranges hold the same.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<S: System> fmt::Display for Bytes<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.iter().try_for_each(|byte| f.write_char(byte.into()))
    }
}

/// Reads a range from its beginning to its end; its position advances.
pub(crate) struct Reader<'s, S> {
    bytes: Bytes<'s, S>,
    position: u64,
}

impl<'s, S: System> Reader<'s, S> {
    pub(crate) fn new(bytes: Bytes<'s, S>) -> Self {
        Self { bytes, position: 0 }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes; fewer at the end.
    pub(crate) fn take(&mut self, len: u64) -> Bytes<'s, S> {
        let part = self.bytes.slice(self.position, self.position + len);
        self.position += part.len();
        part
    }
}
