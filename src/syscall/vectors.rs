//! What a new program finds on its stack: its arguments, its environment, and what the kernel tells it.

use super::exec::StackImage;
use crate::flags::Prot;
use crate::mm::{Image, MmError};

/// Keys of the auxiliary vector.
///
/// # Linux
/// `include/uapi/linux/auxvec.h`.
pub mod aux {
    /// Where the program headers lie.
    pub const PHDR: u64 = 3;
    /// The size of one of them.
    pub const PHENT: u64 = 4;
    /// How many there are.
    pub const PHNUM: u64 = 5;
    /// The size of a page.
    pub const PAGESZ: u64 = 6;
    /// By how much the interpreter was moved, which is where it lies; 0 without one.
    pub const BASE: u64 = 7;
    /// No flags: 0.
    pub const FLAGS: u64 = 8;
    /// Where the program begins.
    pub const ENTRY: u64 = 9;
    /// Where the name of the platform lies.
    pub const PLATFORM: u64 = 15;
    /// Where 16 random bytes lie.
    pub const RANDOM: u64 = 25;
    /// Where the program's path lies.
    pub const EXECFN: u64 = 31;
}

/// The vectors of a new program: `argc`, `argv`, `envp`, the auxiliary vector and 16 random bytes.
///
/// ```text
/// top         8 bytes of zeros
///             the program's path
/// env_end     environment's texts
/// arg_end     arguments' texts
/// arg_start   up to 15 bytes: what lies below begins at a multiple of 16
///             the platform's name                  vector_bytes:
///             16 random bytes                      from here
///             auxiliary vector, ends with a 0
///             envp, ends with a 0
///             argv, ends with a 0
/// start_stack argc                                 to here
/// ```
///
/// # Linux
/// `create_elf_tables` in `fs/binfmt_elf.c`, `bprm_mm_init` and `copy_strings` in `fs/exec.c` (6.18).
#[derive(Clone, Copy, Debug)]
#[doc(alias = "create_elf_tables")]
pub struct Vectors<'a> {
    /// The path that the program was called by.
    pub path: &'a [u8],
    /// The arguments, the program's name first. None are one empty text.
    pub args: &'a [&'a [u8]],
    /// The environment.
    pub env: &'a [&'a [u8]],
    /// Keys and values of the auxiliary vector, in two parts; [`aux::RANDOM`], [`aux::EXECFN`] and [`aux::PLATFORM`] are added.
    pub aux: [&'a [(u64, u64)]; 2],
    /// What the program is told that it runs on, if it is.
    pub platform: Option<&'a [u8]>,
    /// The random bytes.
    pub random: [u8; 16],
}

const WORD: u64 = 8;

impl<'a> Vectors<'a> {
    /// The stack that they need, which ends at `top`.
    pub fn stack(&self, top: u64, prot: Prot) -> StackImage {
        // argc, the ends of argv and envp; RANDOM, EXECFN and the end of the auxiliary vector.
        let pairs =
            self.aux.iter().map(|part| part.len()).sum::<usize>() + 3 + usize::from(self.platform.is_some());
        let words = self.args().len() + self.env.len() + 3 + 2 * pairs;
        let below = self.platform.map_or(0, text_len) + self.random.len() as u64;
        StackImage {
            top,
            path_bytes: text_len(self.path),
            env_bytes: texts_len(self.env),
            arg_bytes: texts_len(self.args()),
            vector_bytes: (words as u64 * WORD).saturating_add(below),
            prot,
        }
    }

    /// How many bytes of texts and of pointers to them there are, which the limit on them counts.
    pub(crate) fn counted_bytes(&self) -> u64 {
        let pointers = (self.args().len() + self.env.len()) as u64 * WORD;
        let texts = texts_len(self.args()).saturating_add(texts_len(self.env));
        texts.saturating_add(text_len(self.path)).saturating_add(pointers)
    }

    /// The longest text of the arguments and the environment, in bytes.
    pub(crate) fn longest(&self) -> u64 {
        self.args().iter().chain(self.env).map(|text| text_len(text)).max().unwrap_or(0)
    }

    const fn args(&self) -> &'a [&'a [u8]] {
        if self.args.is_empty() { &[b""] } else { self.args }
    }

    /// Writes everything, for the stack that [`exec`](super::exec()) has laid out: `image` says where.
    ///
    /// # Errors
    /// The first of `write`'s; [`MmError::Wraps`] if `image` has no room for them.
    pub fn write<E: From<MmError>>(
        &self,
        image: &Image,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut below = image.arg_start.get() & !15;
        let path = image.env_end.get();
        put_text(&mut write, path, self.path)?;
        let mut found = [(aux::EXECFN, path), (0, 0), (0, 0), (0, 0)];
        let mut rest = found.iter_mut().skip(1);
        if let Some(platform) = self.platform {
            below = down(below, text_len(platform))?;
            put_text(&mut write, below, platform)?;
            rest.next().into_iter().for_each(|pair| *pair = (aux::PLATFORM, below));
        }
        below = down(below, self.random.len() as u64)?;
        write(below, &self.random)?;
        rest.next().into_iter().for_each(|pair| *pair = (aux::RANDOM, below));
        let found = found.get(..3 + usize::from(self.platform.is_some())).unwrap_or_default();

        let mut words = Words { at: image.start_stack.get(), write };
        words.push(self.args().len() as u64)?;
        for (texts, from) in [(self.args(), image.arg_start), (self.env, image.env_start)] {
            let mut text_at = from.get();
            for text in texts {
                words.push(text_at)?;
                text_at = put_text(&mut words.write, text_at, text)?;
            }
            words.push(0)?;
        }
        for &(key, value) in self.aux.into_iter().flatten().chain(found) {
            words.push(key)?;
            words.push(value)?;
        }
        Ok(())
    }
}

/// Writes words upwards.
struct Words<W> {
    at: u64,
    write: W,
}

impl<W> Words<W> {
    fn push<E: From<MmError>>(&mut self, value: u64) -> Result<(), E>
    where
        W: FnMut(u64, &[u8]) -> Result<(), E>,
    {
        (self.write)(self.at, &value.to_le_bytes())?;
        self.at = up(self.at, WORD)?;
        Ok(())
    }
}

/// Writes a text and the 0 behind it; answers with where that ends.
fn put_text<E: From<MmError>>(
    write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    at: u64,
    text: &[u8],
) -> Result<u64, E> {
    write(at, text)?;
    let end = up(at, text.len() as u64)?;
    write(end, &[0])?;
    Ok(up(end, 1)?)
}

fn up(at: u64, bytes: u64) -> Result<u64, MmError> {
    at.checked_add(bytes).ok_or(MmError::Wraps)
}

fn down(at: u64, bytes: u64) -> Result<u64, MmError> {
    at.checked_sub(bytes).ok_or(MmError::Wraps)
}

/// The bytes of a text, with the 0 behind it.
const fn text_len(text: &[u8]) -> u64 {
    text.len() as u64 + 1
}

fn texts_len(texts: &[&[u8]]) -> u64 {
    texts.iter().fold(0, |sum, text| sum.saturating_add(text_len(text)))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::addr::VirtAddr;

    fn vectors<'a>(platform: Option<&'a [u8]>) -> Vectors<'a> {
        Vectors {
            path: b"/bin/p",
            args: &[],
            env: &[b"A=1"],
            aux: [&[(6, 4096)], &[(23, 0)]],
            platform,
            random: [7; 16],
        }
    }

    #[test]
    fn vectors_are_written_from_the_stack_pointer_up_to_their_texts() {
        for platform in [None, Some(&b"abc"[..])] {
            let vectors = vectors(platform);
            let stack = vectors.stack(0x8000, Prot::READ);
            let arg = 0x8000 - 8 - stack.path_bytes - stack.env_bytes - stack.arg_bytes;
            let start = ((arg & !15) - stack.vector_bytes) & !15;
            let at = VirtAddr::from;
            let image = Image {
                start_stack: at(start),
                arg_start: at(arg),
                arg_end: at(arg + 1),
                env_start: at(arg + 1),
                env_end: at(arg + 5),
                ..Image::default()
            };
            let mut memory = [0xee; 0x200];
            let base = 0x8000 - 0x200;
            let put = |at: u64, bytes: &[u8]| {
                memory[(at - base) as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok::<(), MmError>(())
            };
            vectors.write(&image, put).unwrap();
            let from = (start - base) as usize;
            let words: Vec<u64> = memory[from..]
                .chunks_exact(8)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
                .collect();
            assert_eq!(words[..5], [1, arg, 0, arg + 1, 0]);
            let pairs: Vec<(u64, u64)> = words[5..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            let (name, random) = ((arg & !15) - 4, (arg & !15) - platform.map_or(16, |_| 20));
            let mut expected = std::vec![(6, 4096), (23, 0), (aux::EXECFN, arg + 5)];
            expected.extend(platform.map(|_| (aux::PLATFORM, name)));
            expected.extend([(aux::RANDOM, random), (0, 0)]);
            assert_eq!(pairs[..expected.len()], expected);
            let lies = |at: u64, text: &[u8]| memory[(at - base) as usize..].starts_with(text);
            assert!(lies(arg, b"\0A=1\0/bin/p\0") && lies(random, &[7; 16]));
            assert!(platform.is_none() || lies(name, b"abc\0"));
            assert!(start + 8 * (5 + 2 * expected.len() as u64) <= random, "nothing is written over");
        }
    }

    #[test]
    fn a_stack_without_room_is_refused() {
        let wrap = |image: &Image| vectors(Some(b"x")).write(image, |_, _| Ok::<(), MmError>(()));
        let high = VirtAddr::from(u64::MAX - 2);
        let room = VirtAddr::from(0x1000);
        let fine =
            Image { start_stack: room, arg_start: room, env_start: room, env_end: room, ..Image::default() };
        assert_eq!(wrap(&fine), Ok(()));
        let none = VirtAddr::ZERO;
        for image in [
            Image { arg_start: none, ..fine },
            Image { arg_start: VirtAddr::from(16), ..fine },
            Image { start_stack: high, ..fine },
            Image { env_start: high, ..fine },
            Image { env_end: high, ..fine },
        ] {
            assert_eq!(wrap(&image), Err(MmError::Wraps), "{image:x?}");
        }
    }
}
