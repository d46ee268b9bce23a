//! Nodes: banks of memory with their own CPUs, near or far from each other.

use super::zone::{ZoneId, ZoneKind};

/// The most nodes.
pub const MAX_NODES: usize = 16;
/// The distance of a node to itself.
pub const LOCAL_DISTANCE: u8 = 10;
/// The distance of nodes of which nothing is said.
pub const REMOTE_DISTANCE: u8 = 20;

/// The end of a zonelist.
pub(super) const NO_ZONE: u8 = u8::MAX;

/// A node.
///
/// # Linux
/// `pg_data_t` in `include/linux/mmzone.h`.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "pg_data_t")]
pub struct Node {
    zones: [u8; ZoneKind::COUNT],
}

impl Node {
    pub(super) const EMPTY: Self = Self { zones: [NO_ZONE; ZoneKind::COUNT] };

    pub(super) fn set_zone(&mut self, kind: ZoneKind, zone: ZoneId) {
        self.zones[kind as usize] = zone.get();
    }

    /// The node's zone of a kind; `None` if it has no frames there.
    ///
    /// # Linux
    /// `node_zones` of `pg_data_t`.
    pub fn zone(&self, kind: ZoneKind) -> Option<ZoneId> {
        let id = self.zones[kind as usize];
        (id != NO_ZONE).then(|| ZoneId::new(id))
    }
}

/// For each node and highest zone the zones to try, nearest node first and in each node the highest zone first.
///
/// # Linux
/// `struct zonelist` and `build_zonelists` in `mm/page_alloc.c`.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "zonelist")]
pub(super) struct Zonelists<'m> {
    /// Each list has a place for every zone and one for its end.
    lists: &'m [u8],
    stride: usize,
}

impl<'m> Zonelists<'m> {
    /// Bytes that the lists of so many nodes and zones take.
    pub(super) fn bytes(nodes: usize, zones: usize) -> usize {
        nodes * ZoneKind::COUNT * (zones + 1)
    }

    /// The byte at `at` of the lists: the zone at its place, or the end.
    pub(super) fn byte(
        nodes: &[Node],
        distance: &impl Fn(usize, usize) -> u8,
        zones: usize,
        at: usize,
    ) -> u8 {
        let (list, place) = (at / (zones + 1), at % (zones + 1));
        let (node, highest) = (list / ZoneKind::COUNT, ZoneKind::ALL[list % ZoneKind::COUNT]);
        let zones = by_distance(nodes.len(), node, distance)
            .flat_map(|near| {
                ZoneKind::ALL
                    .into_iter()
                    .rev()
                    .filter_map(move |kind| Some((kind, nodes.get(near)?.zone(kind)?)))
            })
            .filter(|&(kind, _)| kind <= highest);
        zones.map(|(_, zone)| zone.get()).nth(place).unwrap_or(NO_ZONE)
    }

    pub(super) fn new(lists: &'m [u8], zones: usize) -> Self {
        Self { lists, stride: zones + 1 }
    }

    /// The zones to try for a request from `node`.
    pub(super) fn list(&self, node: u8, highest: ZoneKind) -> impl Iterator<Item = usize> + Clone + use<'m> {
        let start = (usize::from(node) * ZoneKind::COUNT + highest as usize) * self.stride;
        let list = self.lists.get(start..).unwrap_or_default();
        list.iter().map_while(|&zone| (zone != NO_ZONE).then_some(usize::from(zone)))
    }
}

/// All nodes in the order in which `from` falls back to them: by distance, among equals the ones after it first.
///
/// # Linux
/// `find_next_best_node` in `mm/page_alloc.c`.
fn by_distance(
    nodes: usize,
    from: usize,
    distance: &impl Fn(usize, usize) -> u8,
) -> impl Iterator<Item = usize> {
    let rank = move |node: usize| match node == from {
        true => (0, false, node),
        false => (distance(from, node), node < from, node),
    };
    let mut last = None;
    core::iter::from_fn(move || {
        let next = (0..nodes)
            .filter(|&node| last.is_none_or(|last| rank(node) > rank(last)))
            .min_by_key(|&node| rank(node))?;
        last = Some(next);
        Some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(from: usize, table: &[[u8; 4]; 4]) -> [usize; 4] {
        let mut order = [0; 4];
        by_distance(4, from, &|a, b| table[a][b]).enumerate().for_each(|(at, node)| order[at] = node);
        order
    }

    #[test]
    fn nearer_nodes_come_first_and_among_equals_the_next() {
        let ring = [[10, 20, 30, 20], [20, 10, 20, 30], [30, 20, 10, 20], [20, 30, 20, 10]];
        assert_eq!(order(0, &ring), [0, 1, 3, 2]);
        assert_eq!(order(2, &ring), [2, 3, 1, 0]);
        let flat = [[10; 4]; 4];
        assert_eq!(order(2, &flat), [2, 3, 0, 1]);
    }
}
