//! Lines on the standard output.

use core::fmt::{self, Write};

use crate::Calls;
use crate::System;

/// Prints a line by `write(1)`.
macro_rules! say {
    ($sys:expr, $($text:tt)*) => { $crate::print::line($sys, format_args!($($text)*)) };
}

/// Gathers text, so that a line is one call.
struct Line<'s, S> {
    sys: &'s S,
    bytes: [u8; 200],
    len: usize,
}

impl<S: System> Line<'_, S> {
    fn flush(&mut self) {
        if let Some(bytes) = self.bytes.get_mut(..self.len) {
            // Nobody is there to be told that nobody can be told.
            let _ = self.sys.write_bytes(1, bytes);
        }
        self.len = 0;
    }
}

impl<S: System> Write for Line<'_, S> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == self.bytes.len() {
                self.flush();
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

pub(crate) fn line<S: System>(sys: &S, text: fmt::Arguments<'_>) {
    let mut line = Line { sys, bytes: [0; 200], len: 0 };
    let _ = line.write_fmt(text);
    let _ = line.write_char('\n');
    line.flush();
}
