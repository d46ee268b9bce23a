use super::*;
use crate::addr::{PgOff, VirtAddr};
use crate::mm::{
    FileKind, Image, MmContext, MmSlot, MmStores, NullTables, Overcommit, OvercommitMode, Sysctl, VmaNode,
    VmaSlot,
};

struct Cat;

impl Names for Cat {
    fn file(&self, _file: FileRef) -> FileName<'_> {
        FileName { major: 0xfe, minor: 0, inode: 247003, path: "/usr/bin/a\nb" }
    }

    fn special(&self, _id: u32) -> &str {
        "[vdso]"
    }
}

/// Text in a fixed place.
struct Text {
    bytes: [u8; 1024],
    len: usize,
}

impl Text {
    fn of(write: impl Fn(&mut Self) -> fmt::Result) -> Self {
        let mut text = Self { bytes: [0; 1024], len: 0 };
        write(&mut text).unwrap();
        text
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes[self.len..end].copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn vma(start: u64, end: u64, flags: VmFlags, backing: Backing) -> Vma {
    let (start, end) = (VirtAddr::from(start), VirtAddr::from(end));
    Vma { start, end, flags, pgoff: PgOff::new(0x2f).unwrap(), backing, anon: None }
}

/// Runs `test` on an address space with a program, a heap, the vdso and a stack.
fn with_program(test: impl Fn(&Mm<'_>)) {
    let (mms, vma_nodes, vmas): ([MmSlot; 1], [VmaNode; 8], [VmaSlot; 8]) = Default::default();
    let stores = MmStores { mms: &mms, vma_nodes: &vma_nodes, vmas: &vmas, anon_vmas: &[], gaps: &[] };
    let context = MmContext::new(stores, Sysctl::default(), Overcommit::new(OvercommitMode::Always, 0, 0));
    let mut mm = Mm::new(&context).unwrap();
    let mut tables = NullTables::default();
    let file = Backing::File(FileRef::new(1, 1, FileKind::Regular).unwrap());
    let code = VmFlags::READ | VmFlags::EXEC | VmFlags::MAY_ACCESS;
    let data = VmFlags::READ | VmFlags::WRITE | VmFlags::MAY_ACCESS | VmFlags::ACCOUNT;
    for vma in [
        vma(0x5000, 0x9000, code, file),
        vma(0xa000, 0xc000, data, Backing::Anonymous),
        vma(0x7000_0000_0000, 0x7000_0000_2000, code, Backing::Special(7)),
        vma(0x7fff_0000_0000, 0x7fff_0002_1000, data | VmFlags::GROWSDOWN, Backing::Anonymous),
    ] {
        mm.insert_vma(&mut tables, &vma).unwrap();
    }
    mm.set_image(Image {
        start_code: VirtAddr::from(0x5010),
        end_code: VirtAddr::from(0x7ff0),
        start_brk: VirtAddr::from(0xa000),
        brk: VirtAddr::from(0xb123),
        start_stack: VirtAddr::from(0x7fff_0002_0ff0),
        ..Image::default()
    });
    test(&mm);
    crate::syscall::exit(&mut mm, &mut tables);
}

#[test]
fn maps_lines_are_those_of_linux() {
    with_program(|mm| {
        let text = Text::of(|out| maps(out, mm, &Cat));
        let expected = "\
00005000-00009000 r-xp 0002f000 fe:00 247003                             /usr/bin/a\\012b
0000a000-0000c000 rw-p 00000000 00:00 0                                  [heap]
700000000000-700000002000 r-xp 00000000 00:00 0                          [vdso]
7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]
";
        assert_eq!(text.as_str(), expected);
    });
}

#[test]
fn a_line_without_a_name_ends_in_a_blank() {
    let plain = vma(0x1000, 0x2000, VmFlags::MAYSHARE, Backing::Anonymous);
    let text = Text::of(|out| maps_line(out, &plain, None, &Cat));
    assert_eq!(text.as_str(), "00001000-00002000 ---s 00000000 00:00 0 \n");
}

#[test]
fn flags_are_in_the_order_of_their_bits() {
    let flags = VmFlags::ACCOUNT | VmFlags::READ | VmFlags::MAYREAD | VmFlags::LOCKED | VmFlags::MAYBE_GUARD;
    let text = Text::of(|out| vm_flags(out, flags));
    assert_eq!(text.as_str(), "VmFlags: rd mr gu lo ac \n");
}

#[test]
fn statm_and_status_count_pages_and_kibibytes() {
    with_program(|mm| {
        let shared = mm.shared();
        for (kind, came, went) in [(RssKind::Anon, 4, 1), (RssKind::File, 5, 0), (RssKind::Shmem, 1, 0)] {
            shared.add_rss(kind, came);
            assert!(shared.sub_rss(kind, went));
        }
        assert!(shared.sub_rss(RssKind::File, 2) && !shared.sub_rss(RssKind::File, 4));
        shared.add_rss(RssKind::File, 2);
        shared.add_rss(RssKind::Swap, 7);
        shared.set_table_bytes(8192);
        assert_eq!(Text::of(|out| statm(out, mm)).as_str(), "41 9 6 3 0 35 0\n");
        let text = Text::of(|out| status(out, mm));
        let expected = "\
VmPeak:\t     164 kB
VmSize:\t     164 kB
VmLck:\t       0 kB
VmPin:\t       0 kB
VmHWM:\t      36 kB
VmRSS:\t      36 kB
RssAnon:\t      12 kB
RssFile:\t      20 kB
RssShmem:\t       4 kB
VmData:\t       8 kB
VmStk:\t     132 kB
VmExe:\t      12 kB
VmLib:\t      12 kB
VmPTE:\t       8 kB
VmSwap:\t      28 kB
";
        assert_eq!(text.as_str(), expected);
    });
}
