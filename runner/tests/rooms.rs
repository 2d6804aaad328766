//! Checks the rooms of `runner/src`, which CONTRIBUTING.md draws: every import goes to the same room or to a
//! room below it, and no modules import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The lowest room comes first.
const ROOMS: [&str; 12] = [
    "words", "outcome", "node", "broker", "system", "error", "report", "cli", "config", "commands", "lib",
    "main",
];

/// A module's path, without `crate`: `node::redis`; `lib` is the root.
type Module = String;

#[test]
fn every_import_goes_to_the_same_room_or_to_one_below() {
    let floor = |module: &str| {
        let room = module.split("::").next().unwrap_or_default();
        ROOMS.iter().position(|known| *known == room).unwrap_or_else(|| panic!("`{room}` has no floor"))
    };
    for (module, imports) in imports() {
        for import in imports {
            assert!(floor(&import) <= floor(&module), "{module} imports {import}, which is above it");
        }
    }
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut imports = imports();
    // A module is on no circle if it imports none of the modules that are left.
    while !imports.is_empty() {
        let is_free = |needed: &BTreeSet<Module>| needed.iter().all(|import| !imports.contains_key(import));
        let free: Vec<_> =
            imports.iter().filter(|(_, needed)| is_free(needed)).map(|(m, _)| m.clone()).collect();
        assert!(!free.is_empty(), "on a circle, or above one: {imports:#?}");
        imports.retain(|module, _| !free.contains(module));
    }
}

/// What each module imports, without its tests.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: BTreeMap<Module, PathBuf> = files(&src)
        .into_iter()
        .map(|path| {
            (path.strip_prefix(&src).unwrap().with_extension("").to_string_lossy().replace('/', "::"), path)
        })
        .filter(|(module, _)| {
            module != "golden" && !["tests", "test_files"].contains(&module.rsplit("::").next().unwrap())
        })
        .collect();
    assert!(files.len() > 30, "{files:?}");
    let resolve = |path: &[String]| {
        let mut path = path;
        while !path.is_empty() && !files.contains_key(&path.join("::")) {
            path = &path[..path.len() - 1];
        }
        if path.is_empty() { "lib".to_owned() } else { path.join("::") }
    };
    let of = |module: &Module, file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let code: Vec<&str> = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .into_iter()
            .flat_map(|text| text.split("#[cfg(test)]\npub mod tests {").next().unwrap().lines())
            .map(|line| line.split("//").next().unwrap())
            .collect();
        let imported = paths(&code.join("\n"), module).into_iter().map(|path| resolve(&path));
        imported.filter(|import| import != module).collect()
    };
    files.iter().map(|(module, file)| (module.clone(), of(module, file))).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Every path in the code that begins with `crate`, `super` or `self`, with the braces expanded.
fn paths(code: &str, module: &str) -> Vec<Vec<String>> {
    let here: Vec<String> =
        module.split("::").filter(|part| !["lib", "main"].contains(part)).map(str::to_owned).collect();
    let mut found = Vec::new();
    for (start, bases) in
        [("crate::", vec![]), ("super::", here[..here.len().saturating_sub(1)].to_vec()), ("self::", here)]
    {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|char| !char.is_alphanumeric() && char != '_' && char != ':') {
                tree(&mut code[at + start.len()..].chars().peekable(), bases.clone(), &mut found);
            }
        }
    }
    found
}

/// Reads one use tree: `a::b`, or `a::{b, c::d}`.
fn tree(
    code: &mut std::iter::Peekable<std::str::Chars<'_>>,
    mut path: Vec<String>,
    found: &mut Vec<Vec<String>>,
) {
    loop {
        while code.next_if(|char| char.is_whitespace()).is_some() {}
        if code.next_if_eq(&'{').is_some() {
            loop {
                tree(code, path.clone(), found);
                while code.next_if(|char| char.is_whitespace() || *char == ',').is_some() {}
                if code.next_if_eq(&'}').is_some() {
                    return;
                }
                assert!(code.peek().is_some_and(|char| char.is_alphanumeric()), "not a use tree: {path:?}");
            }
        }
        let mut word = String::new();
        while let Some(char) = code.next_if(|char| char.is_alphanumeric() || *char == '_') {
            word.push(char);
        }
        path.push(word);
        if code.next_if_eq(&':').is_none() {
            found.push(path);
            return;
        }
        code.next();
    }
}

#[test]
fn use_trees_are_taken_apart() {
    let code = "use crate::a::{b, c::{d, E}};\nuse super::f;\nlet x = crate::g::h();\nuse mycrate::no;";
    let mut found: Vec<String> = paths(code, "room::module").iter().map(|path| path.join("::")).collect();
    found.sort();
    assert_eq!(found, ["a::b", "a::c::E", "a::c::d", "g::h", "room::f"]);
}
