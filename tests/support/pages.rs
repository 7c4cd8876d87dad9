//! README and the guides as tests read them: their blocks of code, what stands in backticks, links and headings.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::path::{Path, PathBuf};

pub struct Page {
    /// From the root of the repository.
    pub name: String,
    pub text: String,
}

pub struct Block {
    /// `docs/submission.md:12`
    pub place: String,
    /// The text of the last heading above it.
    pub heading: String,
    pub language: String,
    pub text: String,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn page(name: &str) -> Page {
    let text = std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    Page { name: name.to_owned(), text }
}

/// README first, then the guides by name.
pub fn pages() -> Vec<Page> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    let guides = files.iter().map(|file| format!("docs/{}", file.file_name().unwrap().to_str().unwrap()));
    std::iter::once("README.md".to_owned()).chain(guides).map(|name| page(&name)).collect()
}

impl Page {
    /// Code between fences, which may stand in a list.
    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut heading) = (Vec::new(), String::new());
        let mut open: Option<(usize, Block)> = None;
        for (number, line) in (1..).zip(self.text.lines()) {
            let rest = line.trim_start();
            match (&mut open, rest.strip_prefix("```")) {
                (None, Some(language)) => {
                    let place = format!("{}:{number}", self.name);
                    let block =
                        Block { place, heading: heading.clone(), language: language.to_owned(), text: String::new() };
                    open = Some((line.len() - rest.len(), block));
                }
                (Some(_), Some(_)) => blocks.push(open.take().unwrap().1),
                (Some((indent, block)), None) => {
                    block.text.push_str(line.get(*indent..).unwrap_or(rest));
                    block.text.push('\n');
                }
                (None, None) => {
                    if let Some(title) = line.strip_prefix('#') {
                        heading = title.trim_start_matches('#').trim().to_owned();
                    }
                }
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", self.name);
        blocks
    }

    /// The one block in this language below this heading.
    pub fn block(&self, heading: &str, language: &str) -> String {
        let mut fitting: Vec<Block> =
            self.blocks().into_iter().filter(|block| block.heading == heading && block.language == language).collect();
        assert_eq!(fitting.len(), 1, "{}: {language} below {heading:?}", self.name);
        fitting.remove(0).text
    }

    /// What is not in fences, line by line with its number.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut fenced = false;
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(self.text.lines()) {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                lines.push((number, line));
            }
        }
        lines
    }

    /// What stands in backticks, with its place.
    pub fn spans(&self) -> Vec<(String, String)> {
        let mut spans = Vec::new();
        for (number, line) in self.prose() {
            for span in line.split('`').skip(1).step_by(2) {
                spans.push((format!("{}:{number}", self.name), span.to_owned()));
            }
        }
        spans
    }

    /// The anchors of its headings, as they are made on the web.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose().into_iter().filter_map(|(_, line)| line.strip_prefix('#'));
        let titles = headings.map(|title| title.trim_start_matches('#').trim().to_lowercase());
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        titles.map(|title| title.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
    }

    /// Targets of links, with their place.
    pub fn links(&self) -> Vec<(String, String)> {
        let mut links = Vec::new();
        for (number, line) in self.prose() {
            for rest in line.split("](").skip(1) {
                links.push((format!("{}:{number}", self.name), rest.split(')').next().unwrap().to_owned()));
            }
        }
        links
    }
}

/// The words of a command line as a shell cuts them, command by command. Knows quotes, comments, `\` at the end of
/// a line, `|` and the date of today, which is all that the guides use.
pub fn commands(script: &str) -> Vec<Vec<String>> {
    let script = script.replace("\\\n", " ").replace("$(date +%F)", "2026-11-22");
    let mut all = Vec::new();
    for line in script.lines() {
        let (mut words, mut word, mut quote): (Vec<String>, Option<String>, _) = (Vec::new(), None, None);
        for c in line.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (Some(_), c) => word.get_or_insert_default().push(c),
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (None, '#') if word.is_none() => break,
                (None, '|') => {
                    words.extend(word.take());
                    all.push(std::mem::take(&mut words));
                }
                (None, ' ') => words.extend(word.take()),
                (None, c) => word.get_or_insert_default().push(c),
            }
        }
        assert!(quote.is_none(), "a quote is not closed: {line}");
        words.extend(word);
        all.push(words);
    }
    all.retain(|words| !words.is_empty());
    all
}
