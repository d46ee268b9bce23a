//! Memory maps of any sort: what is managed, beside a naive model, and errors that change nothing.
#![no_main]

use arbitrary::Arbitrary;
use kernmm::addr::{PageOrder, Pfn};
use kernmm::flags::GfpFlags;
use kernmm::phys::{Config, InitError, PageState, Phys, Plan, WatermarkConfig, ZoneKind, ZoneLimits};
use kernmm::platform::{MemoryKind, MemoryRange, NodeRange};
use libfuzzer_sys::fuzz_target;

mod machine;

#[derive(Arbitrary, Debug)]
struct Input {
    lines: Vec<(u64, u64, u8)>,
    nodes: Vec<(u16, u16, u8)>,
    limits: (u16, u16),
    distances: Vec<u8>,
    cpus: Vec<u8>,
    /// Whether addresses are taken as they come, or folded into the first 16 MiB.
    wild: bool,
    reverse: bool,
}

const FRAMES: u64 = 4096;

fn fold(raw: u64) -> u64 {
    raw % (FRAMES << 12)
}

fn kind(raw: u8) -> MemoryKind {
    match raw % 8 {
        0 => MemoryKind::Reserved,
        1 => MemoryKind::AcpiReclaimable,
        2 => MemoryKind::Bad,
        3 => MemoryKind::Kernel,
        _ => MemoryKind::Usable,
    }
}

/// Whether all bytes of a frame are usable, by the ends of the lines inside it.
fn managed(map: &[MemoryRange], frame: u64) -> bool {
    let (start, end) = (frame << 12, (frame + 1) << 12);
    let edges = map.iter().flat_map(|line| [line.base, line.base + line.len]);
    let points = edges.filter(|&edge| start <= edge && edge < end).chain([start]);
    points.into_iter().all(|at| {
        let mut here = map.iter().filter(|line| line.base <= at && at < line.base + line.len).peekable();
        here.peek().is_some() && here.all(|line| line.kind == MemoryKind::Usable)
    })
}

fuzz_target!(|input: Input| {
    let mut map: Vec<_> = input
        .lines
        .iter()
        .take(12)
        .map(|&(base, len, raw)| match input.wild {
            true => MemoryRange { base, len, kind: kind(raw) },
            false => MemoryRange { base: fold(base), len: fold(len), kind: kind(raw) },
        })
        .collect();
    let nodes: Vec<_> = input
        .nodes
        .iter()
        .take(6)
        .map(|&(base, len, node)| NodeRange {
            base: u64::from(base) << 8,
            len: u64::from(len) << 8,
            node: node % 20,
        })
        .collect();
    let limit = |raw: u16| Pfn::new(raw.into()).expect("small");
    let config = Config {
        zones: ZoneLimits { dma_end: limit(input.limits.0), normal_end: limit(input.limits.1) },
        nodes: &nodes,
        distances: &input.distances,
        cpus: &input.cpus,
        watermarks: WatermarkConfig::NONE,
        ..Config::default()
    };
    let plan = match Plan::new(map.iter().copied(), &config) {
        Ok(plan) => plan,
        Err(error) => {
            let mut memory = machine::Memory::new(1 << 12);
            let refused = Phys::init(&machine::pin(0), map.iter().copied(), &config, memory.bytes()).err();
            assert_eq!(refused, Some(error));
            return;
        }
    };
    // A wild map may be one of terabytes: then only its plan is looked at.
    let layout = plan.metadata_layout();
    if layout.size() > 8 << 20 {
        return;
    }
    let mut memory = machine::Memory::new(layout.size());
    let mut other = machine::Memory::new(layout.size());
    let pin = machine::pin(0);
    let short =
        Phys::init(&pin, map.iter().copied(), &config, &mut memory.bytes()[..layout.size() - 64]).err();
    assert_eq!(short, Some(InitError::MetadataTooSmall(layout.size())));
    let phys = Phys::init(&pin, map.iter().copied(), &config, memory.bytes()).expect("as planned");
    phys.check(&pin).expect("every frame is in one place");
    assert_eq!(phys.managed_pages(), plan.managed_pages());

    // The same map, turned around, gives the same machine.
    if input.reverse {
        map.reverse();
    } else {
        let middle = map.len() / 2;
        map.rotate_left(middle);
    }
    let again = Phys::init(&pin, map.iter().copied(), &config, other.bytes()).expect("as planned");
    if !input.wild {
        let mut count = 0;
        for frame in 0..2 * FRAMES {
            let at = Pfn::new(frame).expect("small");
            let state = |phys: &Phys<'_>| phys.page(at).map(|page| (page.state(), page.order(), page.zone()));
            assert_eq!(state(&phys), state(&again), "frame {frame}");
            let free = state(&phys)
                .is_some_and(|(state, ..)| !matches!(state, PageState::Absent | PageState::Reserved));
            assert_eq!(free, managed(&map, frame), "frame {frame}");
            count += u64::from(free);
            if free {
                let zone = phys.zone_of(at).expect("managed");
                let node =
                    nodes.iter().find(|node| node.base <= frame << 12 && frame << 12 < node.base + node.len);
                assert_eq!(zone.node(), node.map_or(0, |node| node.node), "frame {frame}");
                let kind = match frame {
                    _ if frame < config.zones.dma_end.get() => ZoneKind::Dma,
                    _ if frame < config.zones.normal_end.get() => ZoneKind::Normal,
                    _ => ZoneKind::HighMem,
                };
                assert_eq!(zone.kind(), kind, "frame {frame}");
            }
        }
        assert_eq!(count, phys.managed_pages());
    }
    let mut given = 0;
    for order in PageOrder::all().rev() {
        for _ in 0..8 {
            let got = [&phys, &again].map(|phys| phys.alloc_pages(&pin, GfpFlags::HIGHUSER_MOVABLE, order));
            assert_eq!(got[0], got[1]);
            let Ok(at) = got[0] else { break };
            assert!(at.is_aligned(order));
            given += order.pages();
            phys.check(&pin).expect("every frame is in one place");
        }
    }
    assert!(given > 0);
});
