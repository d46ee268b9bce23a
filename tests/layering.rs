//! The order of the rooms: a module uses only what stands above it in the table.
//!
//! Where a call must go the other way, the lower room declares a trait and the upper one implements it. What the documentation says of rooms and locks is
//! what the code has.

mod sources;

use std::path::Path;

use sources::{Source, library};

/// The rooms, lowest first. Rooms on one line may use each other.
const ROOMS: [&[&str]; 13] = [
    &["addr", "flags", "error"],
    &["collections"],
    &["platform"],
    &["sync"],
    &["phys"],
    &["slab"],
    &["table"],
    &["rmap"],
    &["cache", "swap"],
    &["mm"],
    &["fault"],
    &["syscall", "reclaim", "report"],
    &["memory", "testing"],
];

fn floor_of(room: &str) -> Option<usize> {
    ROOMS.iter().position(|rooms| rooms.contains(&room))
}

/// Upward uses that stand, each with its reason.
const ALLOWED: [(&str, &str, &str); 0] = [];

/// Every `crate::room` of a line of code, in a `use` or in a path.
fn rooms_in(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").map(|(at, found)| {
        let rest = &line[at + found.len()..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

fn uses(source: &Source) -> Vec<(usize, String)> {
    let mut found = vec![];
    let mut grouped = false;
    for (number, line) in source.code_lines() {
        // `use crate::{a::B, c::D};`, on one line or on several.
        let (inside, outside) = match (grouped, line.split_once("crate::{")) {
            (true, _) => (line.as_str(), ""),
            (false, Some((before, group))) => (group, before),
            (false, None) => ("", line.as_str()),
        };
        grouped = (grouped || line.contains("crate::{")) && !line.contains("};");
        found.extend(rooms_in(outside).map(|room| (number, room.to_owned())));
        let names = inside.split(',').map(|part| part.trim().trim_end_matches(['}', ';']));
        let names = names.map(|part| part.split("::").next().unwrap_or_default().to_owned());
        found.extend(names.filter(|name| floor_of(name).is_some()).map(|room| (number, room)));
    }
    found
}

#[test]
fn no_room_uses_one_that_stands_above_it() {
    let mut seen = 0;
    let mut wrong = vec![];
    for source in library() {
        let Some(own) = source.room() else { continue };
        let floor = floor_of(&own).unwrap_or_else(|| panic!("the room {own} is not in the table"));
        for (line, used) in uses(&source) {
            // Macros and items of the crate root have no room.
            let Some(other) = floor_of(&used) else { continue };
            seen += 1;
            let allowed = ALLOWED.iter().any(|&(file, room, _)| source.path.ends_with(file) && room == used);
            if other > floor && !allowed {
                wrong.push(format!("{}:{line}: {own} uses {used}", source.path));
            }
        }
    }
    assert!(seen > 50, "the walk found only {seen} uses");
    assert!(wrong.is_empty(), "upward uses:\n{}", wrong.join("\n"));
}

#[test]
fn the_walk_sees_uses_in_every_form() {
    let source = Source {
        path: "src/phys/x.rs".to_owned(),
        text: "use crate::addr::Pfn;\nuse crate::{\n    mm::Vma, flags::X,\n};\nfn f(_: crate::slab::Y) {} // crate::memory\n"
            .to_owned(),
    };
    let found: Vec<_> = uses(&source).into_iter().map(|(_, room)| room).collect();
    assert_eq!(found, ["addr", "mm", "flags", "slab"]);
    assert_eq!(source.room().as_deref(), Some("phys"));
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("part of the repository")
}

/// The cells of each row of the table under a heading.
fn table<'a>(text: &'a str, heading: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    let rows = text.lines().skip_while(move |line| !line.contains(heading)).skip(2);
    rows.take_while(|line| line.contains('|')).map(|line| line.split('|').skip(1).map(str::trim).collect())
}

/// The rooms named in a cell.
fn named(cell: &str) -> Vec<String> {
    cell.split(',').map(|name| name.trim().trim_matches(['[', ']', '`']).to_owned()).collect()
}

fn is_there(room: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    root.join(room).is_dir() || root.join(room).with_extension("rs").is_file()
}

#[test]
fn the_documentation_lists_the_rooms_in_their_order() {
    // The last one is a part of another.
    let rooms = || ROOMS.iter().flat_map(|rooms| rooms.iter()).filter(|&&room| room != "testing");
    let text = read("docs/architecture.md");
    let rows: Vec<_> = table(&text, "| Room | Owns | State |").collect();
    let listed: Vec<String> = rows.iter().flat_map(|row| named(row[0])).collect();
    assert!(listed.iter().eq(rooms()), "docs/architecture.md lists {listed:?}");
    for row in rows {
        for room in named(row[0]) {
            assert_eq!(row[2], if is_there(&room) { "there" } else { "planned" }, "{room}");
        }
    }
    let text = read("src/lib.rs");
    let listed: Vec<String> = table(&text, "| Layer | What it has |").flat_map(|row| named(row[0])).collect();
    assert!(listed.iter().eq(rooms().filter(|room| is_there(room))), "src/lib.rs lists {listed:?}");
}

#[test]
fn the_tree_of_locks_has_the_ranks_in_their_order() {
    let text = read("src/sync/mod.rs");
    let lines = text.lines().skip_while(|line| *line != "//! ```text").skip(1);
    let tree: Vec<&str> = lines.take_while(|line| *line != "//! ```").map(|line| &line[4..]).collect();
    let text = read("src/sync/lock.rs");
    let lines = text.lines().skip_while(|line| *line != "pub enum Rank {").take_while(|line| *line != "}");
    let mut ranks: Vec<(u32, &str)> = lines
        .filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "))
        .map(|(name, rank)| (rank.parse().expect("a number"), name))
        .collect();
    ranks.sort_unstable();
    // It is the same lock, of another table.
    ranks.retain(|&(_, name)| name != "SecondTable");
    assert_eq!(tree.len(), ranks.len());
    for (depth, (line, (_, name))) in tree.iter().zip(ranks).enumerate() {
        let inside = line.trim_start();
        assert_eq!((line.len() - inside.len()) / 2, depth, "{line}");
        assert_eq!(inside.split(' ').next(), Some(name), "{line}");
    }
}
