//! Where `unsafe` stands, and that each use says why it is sound.

mod sources;

use std::collections::BTreeMap;

use sources::{Source, library};

/// Where `unsafe` may stand: whole rooms, and single modules of others.
const ALLOWED: [&str; 8] = [
    "src/collections",
    "src/sync",
    "src/platform",
    "src/phys/boot/",
    "src/phys/cpu_pages",
    "src/phys/source",
    "src/memory/source",
    "src/slab",
];

/// How often `unsafe` stands in each room.
const USES: [(&str, usize); 5] =
    [("collections", 51), ("memory", 3), ("phys", 14), ("platform", 48), ("slab", 53)];

/// The word `unsafe` in code, apart from attributes and lints.
fn is_unsafe(code: &str) -> bool {
    let word = |at: usize| {
        let (before, after) = (&code[..at], &code[at + "unsafe".len()..]);
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !before.ends_with(part) && !after.starts_with(part)
    };
    !code.trim_start().starts_with("#") && code.match_indices("unsafe").any(|(at, _)| word(at))
}

/// Lines with `unsafe` that need a comment and have none: `// SAFETY:` before a block or an impl, `# Safety` in the
/// documentation of what asks something of its caller.
fn unexplained(source: &Source) -> Vec<usize> {
    let mut explained = false;
    let mut missing = vec![];
    // The functions of an unsafe trait's implementation ask of their callers what the trait says.
    let mut in_impl = false;
    for ((number, line), (_, code)) in source.lines().zip(source.code_lines()) {
        let text = line.trim_start();
        if text.contains("// SAFETY:") || text.starts_with("/// # Safety") || text.starts_with("//! # Safety")
        {
            explained = true;
        }
        in_impl = (in_impl || code.starts_with("unsafe impl")) && line != "}";
        if in_impl && code.trim_start().starts_with("unsafe fn") {
            continue;
        }
        if is_unsafe(&code) {
            // One comment may stand before one block only.
            if !std::mem::take(&mut explained) {
                missing.push(number);
            }
        } else if code.trim_end().ends_with([';', '}']) {
            // The comment of another statement explains nothing here.
            explained = false;
        }
    }
    missing
}

#[test]
fn unsafe_stands_in_the_allowed_rooms_alone_and_each_use_is_explained() {
    let mut counts = BTreeMap::<String, usize>::new();
    let mut wrong = vec![];
    for source in library() {
        let count = source.code_lines().filter(|(_, code)| is_unsafe(code)).count();
        if count != 0 {
            *counts.entry(source.room().unwrap_or_default()).or_default() += count;
            if !ALLOWED.iter().any(|allowed| source.path.starts_with(allowed)) {
                wrong.push(format!("{}: {count} uses of unsafe outside the allowed rooms", source.path));
            }
        }
        let missing = unexplained(&source);
        wrong.extend(missing.into_iter().map(|line| format!("{}:{line}: no SAFETY comment", source.path)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let counts: Vec<_> = counts.iter().map(|(room, &count)| (room.as_str(), count)).collect();
    assert_eq!(counts, USES, "more is a reason to think again, fewer to write so here");
}

#[test]
fn the_root_denies_unsafe_and_modules_opt_out_with_a_reason() {
    let sources = library();
    let root = sources.iter().find(|source| source.path == "src/lib.rs").expect("the root");
    assert!(root.text.contains("#![deny(unsafe_code)]"));
    for source in &sources {
        for (number, line) in source.lines() {
            assert!(
                !line.contains("allow(unsafe_code"),
                "{}:{number}: use expect with a reason",
                source.path
            );
            let opts_out = line.contains("expect(unsafe_code");
            let mut rest = source.text.lines().skip(number - 1).take(4);
            let reasoned = rest.any(|line| line.contains("reason = \""));
            assert!(!opts_out || reasoned, "{}:{number}: without a reason", source.path);
        }
    }
}

#[test]
fn the_walk_sees_what_is_not_explained() {
    let text = "fn f() {\n    // SAFETY: a reason.\n    unsafe { g() };\n    unsafe { g() };\n}\n#![expect(unsafe_code)]\nlet unsafely = 1; // unsafe\n";
    let source = Source { path: "src/phys/x.rs".to_owned(), text: text.to_owned() };
    assert_eq!(unexplained(&source), [4]);
}

#[test]
fn the_walk_goes_on_behind_what_is_for_tests() {
    let text =
        "#[cfg(test)]\nmod model;\nuse a::b;\n#[cfg(test)]\nmod tests {\n    fn f() {\n    }\n}\nfn g() {}\n";
    let source = Source { path: "src/phys/x.rs".to_owned(), text: text.to_owned() };
    let seen: Vec<_> = source.lines().map(|(number, _)| number).collect();
    assert_eq!(seen, [1, 2, 3, 4, 9]);
    let library = library();
    let hosted =
        library.iter().find(|source| source.path == "src/platform/hosted/mod.rs").expect("it is there");
    assert!(hosted.lines().any(|(_, line)| line.starts_with("unsafe impl Platform")));
}

/// What may panic in shipped code, each with why no caller's input reaches it: file, text, reason.
const PANICS: [(&str, &str, &str); 9] = [
    ("src/collections/slots.rs", "None => unreachable!(", "places are made of slots"),
    ("src/mm/gap/node.rs", "None => unreachable!(", "an entry of an inner node has a child"),
    ("src/mm/gap/node.rs", "None => unreachable!(", "a gap ends after its start"),
    ("src/mm/gap/node.rs", "None => panic!(", "the store has lost a node that it has handed out"),
    ("src/slab/kmalloc.rs", "None => unreachable!()", "in a constant: the build would stop"),
    ("src/mm/pool.rs", "unreachable!(", "a commit uses no more slots than its preparation took"),
    ("src/table/root.rs", "panic!(", "the platform does not map a table that it mapped when it was zeroed"),
    ("src/rmap/anon.rs", "panic!(", "the tree of owners of anonymous pages is corrupted"),
    ("src/mm/set.rs", "panic!(", "the list and the tree of an address space are corrupted"),
];

#[test]
fn nothing_in_the_library_panics_by_word() {
    let words =
        [".unwrap()", ".expect(", "panic!(", "unreachable!(", "todo!(", "unimplemented!(", ".unwrap_err()"];
    let mut wrong = vec![];
    let mut used = vec![false; PANICS.len()];
    for source in library().iter().filter(|source| !source.path.contains("hosted")) {
        for (number, code) in source.code_lines() {
            if !words.iter().any(|word| code.contains(word)) {
                continue;
            }
            let listed = PANICS.iter().zip(&used).position(|((file, text, _), &used)| {
                !used && source.path.ends_with(file) && code.contains(text)
            });
            match listed {
                Some(at) => used[at] = true,
                None => wrong.push(format!("{}:{number}: {}", source.path, code.trim())),
            }
        }
    }
    assert!(wrong.is_empty(), "may panic:\n{}", wrong.join("\n"));
    assert!(used.iter().all(|&used| used), "an entry of the list is not needed any more");
}
