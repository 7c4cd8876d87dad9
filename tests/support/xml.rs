//! Reads XML as our reports are written: elements and text, no attributes but a namespace, five entities.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The whole document: gives its root.
    pub fn parse(document: &str) -> Element {
        let rest = document.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("no declaration");
        let (root, rest) = element(rest);
        assert_eq!(rest.trim(), "");
        root
    }

    pub fn names(&self) -> Vec<&str> {
        self.children.iter().map(|child| child.name.as_str()).collect()
    }

    /// The texts of all elements at this path.
    pub fn all(&self, path: &str) -> Vec<&str> {
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let found = self.children.iter().filter(|child| child.name == first);
        found.flat_map(|child| if rest.is_empty() { vec![child.text.as_str()] } else { child.all(rest) }).collect()
    }

    pub fn child(&self, name: &str) -> &Element {
        let mut found = self.children.iter().filter(|child| child.name == name);
        let only = found.next().unwrap_or_else(|| panic!("no {name} in {self:?}"));
        assert!(found.next().is_none(), "more than one {name} in {self:?}");
        only
    }
}

fn element(text: &str) -> (Element, &str) {
    let (tag, mut rest) = text.strip_prefix('<').and_then(|text| text.split_once('>')).expect("no tag");
    let name = tag.split(' ').next().unwrap();
    let mut element = Element { name: name.to_owned(), ..Element::default() };
    let end = format!("</{name}>");
    loop {
        let (words, tags) = rest.split_at(rest.find('<').expect("no end"));
        element.text.push_str(&unescape(words));
        if let Some(after) = tags.strip_prefix(&end) {
            element.text = element.text.trim().to_owned();
            return (element, after);
        }
        let (child, after) = self::element(tags);
        element.children.push(child);
        rest = after;
    }
}

fn unescape(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    assert!(text.matches('&').count() == named.iter().map(|(name, _)| text.matches(name).count()).sum::<usize>());
    named.iter().fold(text.to_owned(), |text, (name, c)| text.replace(name, c))
}
