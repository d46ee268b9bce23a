//! The memory map of a PC, and its banks of RAM.

use crate::addr::{PAGE_SHIFT, PAGE_SIZE_U64, PageOrder, Pfn, PfnRange};
use crate::platform::{MemoryKind, MemoryRange, NodeRange};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where the first 640 KiB end for RAM: the extended BIOS data area follows.
const EBDA: u64 = 0x9_fc00;
const BIOS: u64 = 0xf_0000;
/// Where devices begin below 4 GiB.
const PCI_HOLE: u64 = 3 * GIB;
/// What the ACPI tables take at the end of RAM below the devices.
const ACPI: u64 = 128 * KIB;

/// What the firmware of a PC with so much RAM reports. RAM that the devices below 4 GiB hide lies above.
pub(super) fn pc(ram_bytes: u64) -> Vec<MemoryRange> {
    use MemoryKind::{AcpiReclaimable, Reserved, Usable};
    let range = |base, end, kind| MemoryRange { base, len: u64::saturating_sub(end, base), kind };
    let below = ram_bytes.min(PCI_HOLE);
    let acpi = below.saturating_sub(ACPI).max(MIB);
    let all = [
        range(0, EBDA.min(ram_bytes), Usable),
        range(EBDA, 640 * KIB, Reserved),
        range(BIOS, MIB, Reserved),
        range(MIB, acpi, Usable),
        range(acpi, below, AcpiReclaimable),
        range(0xfec0_0000, 0xfec0_1000, Reserved),
        range(0xfffc_0000, 4 * GIB, Reserved),
        range(4 * GIB, (4 * GIB).saturating_add(ram_bytes - below), Usable),
    ];
    all.into_iter().filter(|range| range.len != 0).collect()
}

/// Whether there is RAM behind such a range.
fn is_ram(kind: MemoryKind) -> bool {
    !matches!(kind, MemoryKind::Reserved | MemoryKind::Bad)
}

/// The maximal runs of frames with RAM, cut at `cut`; `None` if an address is beyond 2^52.
pub(super) fn banks(map: &[MemoryRange], cut: Pfn) -> Option<Vec<PfnRange>> {
    let mut runs = vec![];
    for range in map.iter().filter(|range| is_ram(range.kind) && range.len != 0) {
        let end = range.base.checked_add(range.len)?.div_ceil(PAGE_SIZE_U64);
        let (start, end) = (Pfn::new(range.base >> PAGE_SHIFT)?, Pfn::new(end)?);
        let pieces = [PfnRange::new(start, end.min(cut)), PfnRange::new(start.max(cut), end)];
        runs.extend(pieces.into_iter().flatten().filter(|piece| !piece.is_empty()));
    }
    runs.sort_by_key(|run| run.start());
    let mut banks: Vec<PfnRange> = vec![];
    for run in runs {
        match banks.last_mut().filter(|bank| run.start() <= bank.end() && run.start() != cut) {
            Some(bank) => *bank = PfnRange::new(bank.start(), bank.end().max(run.end()))?,
            None => banks.push(run),
        }
    }
    Some(banks)
}

/// Divides the RAM by address into parts, one a node, that are equal but for a page block: nodes meet at multiples of 2 MiB.
pub(super) fn nodes(map: &[MemoryRange], count: u8) -> Option<Vec<NodeRange>> {
    let banks = banks(map, Pfn::MAX)?;
    let share = banks.iter().map(|bank| bank.len()).sum::<u64>().div_ceil(u64::from(count).max(1));
    let mut nodes = vec![];
    let (mut node, mut left) = (0, share);
    for bank in banks {
        let mut start = bank.start();
        while start < bank.end() {
            let rest = bank.end().checked_since(start)?;
            let aligned = (start.get() + left).next_multiple_of(PageOrder::MAX.pages()) - start.get();
            let len = if rest <= left { rest } else { rest.min(aligned) };
            let (base, bytes) = (start.get() << PAGE_SHIFT, len << PAGE_SHIFT);
            nodes.push(NodeRange { base, len: bytes, node });
            (start, left) = (start.checked_add(len)?, left.saturating_sub(len));
            if left == 0 && node + 1 < count {
                (node, left) = (node + 1, share);
            }
        }
    }
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start).unwrap(), Pfn::new(end).unwrap()).unwrap()
    }

    #[test]
    fn ram_that_devices_hide_lies_above_four_gibibytes() {
        let ram = |bytes| -> u64 {
            let kinds = |range: &&MemoryRange| range.kind != MemoryKind::Reserved;
            pc(bytes).iter().filter(kinds).map(|range| range.len).sum()
        };
        let hidden = MIB - EBDA;
        assert_eq!(ram(256 * MIB), 256 * MIB - hidden);
        assert_eq!(ram(5 * GIB), 5 * GIB - hidden);
        assert!(pc(256 * MIB).iter().all(|range| range.base < 4 * GIB));
        assert!(pc(5 * GIB).iter().any(|range| range.base == 4 * GIB && range.len == 2 * GIB));
    }

    #[test]
    fn banks_merge_what_touches_and_are_cut_where_highmem_begins() {
        let map = pc(64 * MIB);
        let banks = |cut| banks(&map, Pfn::new(cut).unwrap()).unwrap();
        assert_eq!(banks(1 << 30), [frames(0, 0xa0), frames(0x100, 0x4000)]);
        assert_eq!(banks(0x2000), [frames(0, 0xa0), frames(0x100, 0x2000), frames(0x2000, 0x4000)]);
    }

    #[test]
    fn nodes_share_the_ram_equally_and_meet_between_page_blocks() {
        for count in 1..=5 {
            let nodes = nodes(&pc(5 * GIB), count).unwrap();
            let size =
                |node| nodes.iter().filter(|range| range.node == node).map(|range| range.len).sum::<u64>();
            let sizes: Vec<u64> = (0..count).map(size).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            assert!(most - least <= u64::from(count) * 2 * MIB, "{sizes:?}");
            assert_eq!(sizes.iter().sum::<u64>(), 5 * GIB - MIB + 640 * KIB);
            for pair in nodes.windows(2).filter(|pair| pair[0].node != pair[1].node) {
                assert_eq!(pair[1].base % (2 * MIB), 0);
            }
        }
    }
}
