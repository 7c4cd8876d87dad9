//! The house rules that a compiler does not check: who may import whom, who alone may name what.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// Module and layer: a module may import its own layer only where that is itself or layer 0, and
/// every lower layer.
const LAYERS: [(&str, u8); 21] = [
    ("message", 0),
    ("smtp", 0),
    ("clock", 1),
    ("config", 1),
    ("current", 1),
    ("dns", 1),
    ("secret", 1),
    ("store", 1),
    ("trail", 1),
    ("bounce", 2),
    ("checks", 2),
    ("events", 2),
    ("queue", 2),
    ("routing", 2),
    ("intake", 3),
    ("delivery", 4),
    ("server", 5),
    ("admin", 5),
    ("app", 6),
    ("cli", 7),
    ("fuzzing", 8),
];

/// Data that every layer may use although it lives with its owner.
const WORDS: [&str; 2] = ["queue::record", "events::"];
/// Layers whose members do not import each other.
const SEPARATE: [u8; 2] = [2, 5];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn module(path: &Path) -> String {
    let inner = path.strip_prefix(src()).unwrap();
    let first = inner.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// The code of a file without comments and without its unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What a file imports: the paths behind `crate::`.
fn imports(code: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split("crate::").skip(1).map(|rest| rest.chars().take_while(|c| is_path(*c)).collect()).collect()
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for path in sources(&src()) {
        let own = module(&path);
        let Some(own_layer) = layer(&own) else { continue };
        for import in imports(&code(&path)) {
            let target = import.split("::").next().unwrap_or_default();
            let Some(target_layer) = layer(target) else { continue };
            let word = WORDS.iter().any(|word| import.starts_with(word)) && own_layer > 0;
            let sideways = target_layer == own_layer && target != own && SEPARATE.contains(&own_layer);
            if !word && (target_layer > own_layer || sideways) {
                wrong.push(format!("{}: crate::{import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn words_have_no_io_no_clock_and_no_runtime() {
    for path in sources(&src()) {
        if layer(&module(&path)) == Some(0) {
            let code = code(&path);
            for word in ["tokio", "std::net::Tcp", "std::fs", "SystemTime", "Instant"] {
                assert!(!code.contains(word), "{} names {word}", path.display());
            }
        }
    }
}

#[test]
fn only_their_owners_name_rocksdb_and_the_resolver() {
    for path in sources(&src()) {
        let code = code(&path);
        if module(&path) != "store" {
            assert!(!code.contains("rocksdb"), "{} names rocksdb", path.display());
        }
        if module(&path) != "dns" {
            assert!(!code.contains("hickory"), "{} names hickory", path.display());
        }
    }
}

#[test]
fn nothing_is_global_but_constants() {
    for path in sources(&src()) {
        for line in code(&path).lines() {
            let line = line.trim_start();
            let global = line.starts_with("static ") || line.starts_with("pub static ") || line.contains("LazyLock<");
            let may_be = line.contains("Atomic") || line.starts_with("static ALLOCATOR:");
            assert!(!global || may_be, "{}: {line}", path.display());
        }
    }
}

#[test]
fn the_codemap_names_every_module() {
    let map = fs::read_to_string(src().join("lib.rs")).unwrap();
    for entry in fs::read_dir(src()).unwrap() {
        let name = entry.unwrap().file_name().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if name != "lib" && name != "main" {
            assert!(map.contains(&format!("[`{name}`]")), "lib.rs does not tell what {name} is for");
        }
    }
}
