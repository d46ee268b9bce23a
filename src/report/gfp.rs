//! Allocation flags by name.

use core::fmt;

use crate::flags::GfpFlags;

/// Allocation flags as Linux's `%pGg` prints them: the names of the combinations, then of single flags, then what is left.
///
/// # Linux
/// `format_flags` in `lib/vsprintf.c` with `gfpflag_names` of `include/trace/events/mmflags.h`.
#[derive(Clone, Copy, Debug)]
pub struct GfpNames(pub GfpFlags);

/// In Linux's order: each name takes its flags away from those after it.
const NAMES: [(GfpFlags, &str); 23] = [
    (GfpFlags::HIGHUSER_MOVABLE, "GFP_HIGHUSER_MOVABLE"),
    (GfpFlags::HIGHUSER, "GFP_HIGHUSER"),
    (GfpFlags::KERNEL, "GFP_KERNEL"),
    (GfpFlags::NOFS, "GFP_NOFS"),
    (GfpFlags::ATOMIC, "GFP_ATOMIC"),
    (GfpFlags::NOIO, "GFP_NOIO"),
    (GfpFlags::NOWAIT, "GFP_NOWAIT"),
    (GfpFlags::DMA, "GFP_DMA"),
    (GfpFlags::HIGHMEM, "__GFP_HIGHMEM"),
    (GfpFlags::HIGH, "__GFP_HIGH"),
    (GfpFlags::IO, "__GFP_IO"),
    (GfpFlags::FS, "__GFP_FS"),
    (GfpFlags::NOWARN, "__GFP_NOWARN"),
    (GfpFlags::NOFAIL, "__GFP_NOFAIL"),
    (GfpFlags::NORETRY, "__GFP_NORETRY"),
    (GfpFlags::COMP, "__GFP_COMP"),
    (GfpFlags::ZERO, "__GFP_ZERO"),
    (GfpFlags::NOMEMALLOC, "__GFP_NOMEMALLOC"),
    (GfpFlags::MEMALLOC, "__GFP_MEMALLOC"),
    (GfpFlags::THISNODE, "__GFP_THISNODE"),
    (GfpFlags::RECLAIMABLE, "__GFP_RECLAIMABLE"),
    (GfpFlags::MOVABLE, "__GFP_MOVABLE"),
    (GfpFlags::RECLAIM, "__GFP_RECLAIM"),
];
const RECLAIM_PARTS: [(GfpFlags, &str); 2] =
    [(GfpFlags::DIRECT_RECLAIM, "__GFP_DIRECT_RECLAIM"), (GfpFlags::KSWAPD_RECLAIM, "__GFP_KSWAPD_RECLAIM")];

impl fmt::Display for GfpNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0;
        let mut bar = "";
        for (flags, name) in NAMES.into_iter().chain(RECLAIM_PARTS) {
            if left.contains(flags) {
                write!(f, "{bar}{name}")?;
                left -= flags;
                bar = "|";
            }
        }
        match left.bits() {
            0 => Ok(()),
            unknown => write!(f, "{bar}{unknown:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_names_that_linux_prints() {
        let name = |gfp| GfpNames(gfp).to_string();
        assert_eq!(name(GfpFlags::KERNEL), "GFP_KERNEL");
        assert_eq!(
            name(GfpFlags::KERNEL | GfpFlags::COMP | GfpFlags::ZERO),
            "GFP_KERNEL|__GFP_COMP|__GFP_ZERO"
        );
        assert_eq!(name(GfpFlags::HIGHUSER_MOVABLE), "GFP_HIGHUSER_MOVABLE");
        assert_eq!(name(GfpFlags::ATOMIC | GfpFlags::NOWARN), "GFP_ATOMIC|__GFP_NOWARN");
        assert_eq!(name(GfpFlags::NOWAIT), "GFP_NOWAIT");
        assert_eq!(name(GfpFlags::DIRECT_RECLAIM | GfpFlags::IO), "__GFP_IO|__GFP_DIRECT_RECLAIM");
        assert_eq!(name(GfpFlags::from_bits_retain(1 << 30) | GfpFlags::DMA), "GFP_DMA|0x40000000");
        assert_eq!(name(GfpFlags::empty()), "");
    }
}
