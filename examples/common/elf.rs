//! Writes small ELF files, as a linker would.
#![allow(dead_code, reason = "not everybody who shares this needs all of it")]
#![allow(clippy::allow_attributes, reason = "expect would fail where all of it is used")]

/// A program: text, then data, then memory that begins as zeros. Text and data lie in the file one after the other, and a page apart in memory.
pub(crate) struct Program {
    /// Where the text lies in memory, and the file's first byte with it.
    pub(crate) base: u64,
    /// The instructions; the first is the entry.
    pub(crate) text: Vec<u8>,
    /// What the program may write to.
    pub(crate) data: Vec<u8>,
    /// Bytes of zeros behind it.
    pub(crate) bss: u64,
}

/// Where the text begins in the file.
const TEXT: u64 = 64 + 3 * 56;
const PAGE: u64 = 4096;

impl Program {
    /// The address of the first instruction.
    pub(crate) fn entry(&self) -> u64 {
        self.base + TEXT
    }

    /// The address of the data.
    pub(crate) fn data_addr(&self) -> u64 {
        self.base + TEXT + self.text.len() as u64 + PAGE
    }

    /// The file, for a machine with this number (62 is x86-64, 243 RISC-V).
    pub(crate) fn file(&self, machine: u16) -> Vec<u8> {
        let text_end = TEXT + self.text.len() as u64;
        let data = self.data.len() as u64;
        let mut file = vec![];
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend([2_u16, machine].iter().flat_map(|half| half.to_le_bytes()));
        file.extend(1_u32.to_le_bytes());
        file.extend([self.entry(), 64, 0].iter().flat_map(|long| long.to_le_bytes()));
        file.extend(0_u32.to_le_bytes());
        file.extend([64_u16, 56, 3, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
        let mut header = |kind: u32, flags: u32, fields: [u64; 6]| {
            file.extend([kind, flags].iter().flat_map(|word| word.to_le_bytes()));
            file.extend(fields.iter().flat_map(|long| long.to_le_bytes()));
        };
        header(1, 5, [0, self.base, self.base, text_end, text_end, PAGE]);
        header(1, 6, [text_end, self.data_addr(), self.data_addr(), data, data + self.bss, PAGE]);
        header(0x6474_e551, 6, [0, 0, 0, 0, 0, 16]);
        file.extend(&self.text);
        file.extend(&self.data);
        // What else files have, and programs do not see: symbols, names, notes.
        file.extend([0xee; 300]);
        file
    }
}
