//! Whether a refused call has left a trace.

use kernmm::mm::{Image, Mm, Totals, Vma};

/// Everything that a refused call must leave as it was.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Digest {
    vmas: Vec<Vma>,
    totals: Totals,
    image: Image,
    def_flags: u64,
    committed: u64,
    slots: u32,
    anon_vmas: u32,
    table_bytes: u64,
}

pub(crate) fn digest(mm: &Mm<'_>) -> Digest {
    Digest {
        vmas: mm.vmas().iter().map(|(_, vma)| vma).collect(),
        totals: *mm.totals(),
        image: *mm.image(),
        def_flags: mm.def_flags().bits(),
        committed: mm.context().overcommit().committed(),
        slots: mm.context().pool().used(),
        anon_vmas: mm.context().anon_vmas().used(),
        table_bytes: mm.shared().table_bytes(),
    }
}
