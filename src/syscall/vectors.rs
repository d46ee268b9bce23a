//! What a new program finds on its stack: its arguments, its environment, and what the kernel tells it.

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
    /// Where the interpreter lies.
    pub const BASE: u64 = 7;
    /// Where the program begins.
    pub const ENTRY: u64 = 9;
    /// Where 16 random bytes lie.
    pub const RANDOM: u64 = 25;
}

/// The vectors of a new program: `argc`, `argv`, `envp`, the auxiliary vector and 16 random bytes.
///
/// ```text
/// stack_top   environment's texts
///             arguments' texts
///             16 random bytes                      vector_bytes:
///             auxiliary vector, ends with a 0      from here
///             envp, ends with a 0
///             argv, ends with a 0
/// start_stack argc                                 to here
/// ```
///
/// # Linux
/// `create_elf_tables` in `fs/binfmt_elf.c`.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "create_elf_tables")]
pub struct Vectors<'a> {
    /// The arguments, the program's name first.
    pub args: &'a [&'a [u8]],
    /// The environment.
    pub env: &'a [&'a [u8]],
    /// Keys and values of the auxiliary vector; [`aux::RANDOM`] is added.
    pub aux: &'a [(u64, u64)],
    /// The random bytes.
    pub random: [u8; 16],
}

const WORD: u64 = 8;

impl Vectors<'_> {
    /// Bytes of the arguments' texts, with the 0 after each.
    pub fn arg_bytes(&self) -> u64 {
        texts(self.args)
    }

    /// Bytes of the environment's texts, with the 0 after each.
    pub fn env_bytes(&self) -> u64 {
        texts(self.env)
    }

    /// Bytes below the texts.
    pub fn vector_bytes(&self) -> u64 {
        // argc, two ends, RANDOM and the last pair.
        let words = self.args.len() + self.env.len() + 2 * self.aux.len() + 1 + 2 + 4;
        words as u64 * WORD + self.random.len() as u64
    }

    /// Writes everything, for the stack that [`exec`](super::exec()) has laid out: `start` is its [`start_stack`](crate::mm::Image::start_stack), the texts of the
    /// arguments and of the environment begin at `args` and `env`.
    ///
    /// # Errors
    /// The first of `write`'s.
    pub fn write<E>(
        &self,
        start: u64,
        args: u64,
        env: u64,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let random = args - self.random.len() as u64;
        write(random, &self.random)?;
        let mut words = Words { at: start, write };
        words.push(self.args.len() as u64)?;
        for (texts, mut text_at) in [(self.args, args), (self.env, env)] {
            for text in texts {
                words.push(text_at)?;
                (words.write)(text_at, text)?;
                (words.write)(text_at + text.len() as u64, &[0])?;
                text_at += text.len() as u64 + 1;
            }
            words.push(0)?;
        }
        for &(key, value) in self.aux.iter().chain(&[(aux::RANDOM, random), (0, 0)]) {
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
    fn push<E>(&mut self, value: u64) -> Result<(), E>
    where
        W: FnMut(u64, &[u8]) -> Result<(), E>,
    {
        (self.write)(self.at, &value.to_le_bytes())?;
        self.at += WORD;
        Ok(())
    }
}

fn texts(texts: &[&[u8]]) -> u64 {
    texts.iter().map(|text| text.len() as u64 + 1).sum()
}
