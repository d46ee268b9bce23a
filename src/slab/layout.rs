//! How objects lie in a slab; the [room](super) draws it.

use crate::addr::{PAGE_SIZE, PageOrder};

use super::error::CreateError;

/// The smallest alignment.
///
/// # Linux
/// `ARCH_KMALLOC_MINALIGN`, `ARCH_SLAB_MINALIGN`.
pub(super) const MIN_ALIGN: usize = 8;

/// Slabs larger than this hold one object only.
///
/// # Linux
/// `slub_max_order`: `PAGE_ALLOC_COSTLY_ORDER`.
const MAX_SLAB_ORDER: u8 = 3;

/// The most objects of a page or more that a slab holds.
pub(super) const MAX_IN_PAGES: usize = 1 << MAX_SLAB_ORDER;

/// Bytes of an object's state at the end of its slab.
const STATE_BYTES: usize = 2;

/// Bits after the point of [`ObjectLayout::reciprocal`].
const RECIPROCAL_SHIFT: u32 = 43;

/// Where an object's state is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StatesIn {
    /// At the end of the slab.
    Slab,
    /// In the metadata of the page where the object begins, one at most.
    Pages,
}

/// A slab of one order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    pub(super) order: PageOrder,
    /// Objects in the slab.
    pub(super) count: u16,
    /// Where the states begin, in bytes from the slab's start.
    pub(super) states_at: u32,
}

/// How a cache's objects lie in its slabs.
#[derive(Clone, Copy, Debug)]
pub(super) struct ObjectLayout {
    /// Bytes that the owner of an object may use.
    pub(super) object_size: u32,
    /// Bytes from one object to the next: with its red zone and rounded up to the alignment.
    pub(super) size: u32,
    pub(super) align: u32,
    pub(super) states_in: StatesIn,
    /// `2^43 / size`, rounded up: division by multiplication, exact for offsets up to 2 MiB.
    reciprocal: u64,
    /// The slab that is asked for first.
    pub(super) usual: Geometry,
    /// The smallest slab, for when that one cannot be had.
    pub(super) least: Geometry,
}

impl ObjectLayout {
    /// Lays out objects for a machine of so many CPUs.
    ///
    /// # Errors
    /// [`CreateError::InvalidSize`], [`CreateError::InvalidAlign`].
    pub(super) fn new(object_size: usize, align: usize, cpus: usize) -> Result<Self, CreateError> {
        if !align.is_power_of_two() || align > PageOrder::MAX.bytes() {
            return Err(CreateError::InvalidAlign);
        }
        if object_size == 0 || object_size > PageOrder::MAX.bytes() {
            return Err(CreateError::InvalidSize);
        }
        let align = align.max(MIN_ALIGN);
        let size = (object_size + red_zone(align)).next_multiple_of(align);
        let states_in = if size < PAGE_SIZE { StatesIn::Slab } else { StatesIn::Pages };
        let least = PageOrder::for_bytes(size + state_bytes(states_in)).ok_or(CreateError::InvalidSize)?;
        let usual = usual_order(size, states_in, least, cpus);
        Ok(Self {
            object_size: object_size as u32,
            size: size as u32,
            align: align as u32,
            states_in,
            reciprocal: (1_u64 << RECIPROCAL_SHIFT).div_ceil(size as u64),
            usual: Geometry::new(size, states_in, usual),
            least: Geometry::new(size, states_in, least),
        })
    }

    /// The geometry of a slab of this order.
    #[inline]
    pub(super) fn geometry(&self, order: PageOrder) -> &Geometry {
        if order == self.usual.order { &self.usual } else { &self.least }
    }

    /// The number of the object that begins `offset` bytes from its slab's start; `None` if none begins there.
    #[inline]
    pub(super) fn index_of(&self, geometry: &Geometry, offset: usize) -> Option<u16> {
        let index = (offset as u64 * self.reciprocal) >> RECIPROCAL_SHIFT;
        (index < u64::from(geometry.count) && index * u64::from(self.size) == offset as u64)
            .then_some(index as u16)
    }

    /// Where an object begins, in bytes from its slab's start.
    #[inline]
    pub(super) fn offset_of(&self, index: u16) -> usize {
        usize::from(index) * self.size as usize
    }
}

impl Geometry {
    fn new(size: usize, states_in: StatesIn, order: PageOrder) -> Self {
        let count = order.bytes() / (size + state_bytes(states_in));
        Self {
            order,
            count: count as u16,
            states_at: (order.bytes() - count * state_bytes(states_in)) as u32,
        }
    }
}

fn state_bytes(states_in: StatesIn) -> usize {
    match states_in {
        StatesIn::Slab => STATE_BYTES,
        StatesIn::Pages => 0,
    }
}

/// Bytes after an object that nobody may write; none without feature `check`.
const fn red_zone(align: usize) -> usize {
    if cfg!(feature = "check") { align } else { 0 }
}

/// The order that wastes little and holds enough objects that the list of slabs is seldom locked.
///
/// # Linux
/// `calculate_order` in `mm/slub.c`. There the states are in the objects, so that waste is only what is left over.
fn usual_order(size: usize, states_in: StatesIn, least: PageOrder, cpus: usize) -> PageOrder {
    let wanted = 4 * (usize::BITS - cpus.leading_zeros() + 1) as usize;
    let from = PageOrder::for_bytes(size * wanted).unwrap_or(PageOrder::MAX).get().min(MAX_SLAB_ORDER);
    let orders = least.and_above().filter(|order| (from..=MAX_SLAB_ORDER).contains(&order.get()));
    let wasted =
        |order: PageOrder| order.bytes() - usize::from(Geometry::new(size, states_in, order).count) * size;
    [16, 8, 4, 2]
        .into_iter()
        .find_map(|fraction| orders.clone().find(|&order| wasted(order) <= order.bytes() / fraction))
        .unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_states_fit_into_their_slab() {
        for size in (1..=9000).chain([16384, 40_000, 1 << 20, (1 << 20) + 8]) {
            for align in [1, 8, 32, 64, 4096] {
                let layout = ObjectLayout::new(size, align, 2).unwrap();
                for geometry in [layout.usual, layout.least] {
                    assert!(geometry.count >= 1);
                    let end = usize::from(geometry.count) * layout.size as usize;
                    assert!(end <= geometry.states_at as usize, "{size} {align}");
                    let states = usize::from(geometry.count) * state_bytes(layout.states_in);
                    assert!(geometry.states_at as usize + states <= geometry.order.bytes());
                    assert_eq!(geometry.states_at % 2, 0);
                }
                assert_eq!(layout.size as usize % align, 0);
            }
        }
    }

    #[test]
    fn an_index_is_found_for_the_first_byte_of_an_object_alone() {
        for size in [8, 24, 96, 1000, 4096, 4104, 12_288, 700_000] {
            let layout = ObjectLayout::new(size, 8, 4).unwrap();
            let geometry = &layout.usual;
            for index in 0..geometry.count {
                let offset = layout.offset_of(index);
                assert_eq!(layout.index_of(geometry, offset), Some(index));
                assert_eq!(layout.index_of(geometry, offset + 1), None);
                assert_eq!(layout.index_of(geometry, offset + layout.size as usize - 1), None);
            }
            assert_eq!(layout.index_of(geometry, layout.offset_of(geometry.count)), None);
        }
    }

    #[test]
    fn sizes_and_alignments_out_of_range_are_refused() {
        let error = |size, align| ObjectLayout::new(size, align, 1).err();
        assert_eq!(error(0, 8), Some(CreateError::InvalidSize));
        assert_eq!(error((2 << 20) + 1, 8), Some(CreateError::InvalidSize));
        assert_eq!(error(8, 0), Some(CreateError::InvalidAlign));
        assert_eq!(error(8, 24), Some(CreateError::InvalidAlign));
        assert_eq!(error(8, 4 << 20), Some(CreateError::InvalidAlign));
        assert_eq!(error(usize::MAX, 8), Some(CreateError::InvalidSize));
    }

    #[cfg(not(feature = "check"))]
    #[test]
    fn orders_are_those_of_linux_where_states_cost_nothing() {
        let usual = |size: usize| {
            let layout = ObjectLayout::new(size, size.next_power_of_two().min(4096), 2).unwrap();
            (layout.usual.order.get(), layout.usual.count)
        };
        assert_eq!(usual(64), (0, 62));
        assert_eq!(usual(512), (1, 15));
        assert_eq!(usual(2048), (3, 15));
        assert_eq!(usual(4096), (3, 8));
        assert_eq!(usual(8192), (3, 4));
        assert_eq!(usual(65536), (4, 1));
    }
}
