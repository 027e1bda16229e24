//! Names of indices, and of the fields in them.
//!
//! Ids of applications and names of models have capitals and signs that names of indices may not have, and are longer together than
//! those may be. So an index is called `PREFIX.APP-MODEL-HASH-LIFE`: a legible part for people, a hash of the exact names that tells
//! apart what looks alike, and the number of the application's life, which rises when it is deleted and made again. The dot keeps
//! the patterns of two prefixes apart, for no prefix holds one.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::model::{
    AppId, ModelName,
    filter::{Field, Kind},
};

/// Most characters of a name in the legible part.
const LEGIBLE: usize = 40;
const HASH_BYTES: usize = 16;

/// Whether indices may begin so.
pub(super) fn is_prefix(text: &str) -> bool {
    text.len() <= 40
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

/// The index of what is known of each application.
pub(super) fn applications(prefix: &str) -> String {
    format!("{prefix}.applications")
}

/// What every index of a prefix is called like.
pub(super) fn pattern(prefix: &str) -> String {
    format!("{prefix}.*")
}

/// What every index of documents can be read by.
pub(super) fn all_documents(prefix: &str) -> String {
    format!("{prefix}.all-documents")
}

/// The index of the documents of a model.
pub(super) fn documents(prefix: &str, app: &AppId, model: &ModelName, life: u32) -> String {
    let digest = Sha256::digest(format!("{app}/{model}"));
    let mut name = format!("{prefix}.{}-{}-", legible(app.as_str()), legible(model.as_str()));
    for byte in digest.iter().take(HASH_BYTES) {
        // A text takes whatever is written.
        let _written = write!(name, "{byte:02x}");
    }
    format!("{name}-{life}")
}

/// What documents are written by: an alias, which does not come into being by itself as an index would, so that nothing is written
/// to what was dropped.
pub(super) fn entrance(index: &str) -> String {
    format!("{index}.in")
}

fn legible(name: &str) -> String {
    let sign = |sign: char| if sign.is_ascii_alphanumeric() { sign.to_ascii_lowercase() } else { '_' };
    name.chars().take(LEGIBLE).map(sign).collect()
}

/// A field of a document's own, below `f`. Fields of other types have other names: a field may become one of another type while
/// documents hold the old one.
pub(super) fn key(field: &Field) -> String {
    let kind = match field.kind {
        Kind::String => "string",
        Kind::Number => "number",
        Kind::Boolean => "boolean",
        Kind::Date => "date",
    };
    let many = if field.is_array { "s" } else { "" };
    format!("{kind}{many}-{}", field.path.replace('.', "-"))
}

/// An id as a part of a path.
pub(super) fn in_path(id: &str) -> String {
    let mut path = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            path.push(char::from(byte));
        } else {
            let _written = write!(path, "%{byte:02X}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn name(app: &str, model: &str, life: u32) -> String {
        documents("nexxus", &AppId::parse(app).expect("an id"), &ModelName::parse(model).expect("a name"), life)
    }

    #[test]
    fn names_are_legible_allowed_and_never_the_same() {
        assert!(name("Shop.eu", "task", 0).starts_with("nexxus.shop_eu-task-"), "{}", name("Shop.eu", "task", 0));
        let long = "A".repeat(128);
        let apps = ["a", "A", "a.b", "a_b", "a~b", "-a", "..a", "+a", &long, &long[1..]];
        let models = ["task", "Task", "task-2", "task_2"];
        let mut seen = BTreeSet::new();
        for (app, model, life) in apps.iter().flat_map(|app| models.iter().map(move |model| (app, model, 1))) {
            let name = name(app, model, life);
            assert!(entrance(&name).len() <= 255 && name.chars().all(|sign| !sign.is_ascii_uppercase()), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)), "{name}");
            assert!(seen.insert(name));
        }
        assert_ne!(name("a", "task", 1), name("a", "task", 2));
    }

    #[test]
    fn prefixes_begin_with_a_letter_and_hold_no_dot() {
        for good in ["nexxus", "n1_x-y"] {
            assert!(is_prefix(good), "{good}");
        }
        for bad in ["", "1x", "_x", "-x", "X", "a.b", "a*", "ä", &"x".repeat(41)] {
            assert!(!is_prefix(bad), "{bad}");
        }
    }

    #[test]
    fn fields_of_other_types_have_other_names() {
        let field = |path: &str, kind, is_array| key(&Field { path: path.into(), kind, is_array, is_universal: false });
        assert_eq!(field("meta.place_1", Kind::String, false), "string-meta-place_1");
        assert_eq!(field("due", Kind::Date, true), "dates-due");
        assert_ne!(field("a", Kind::Number, false), field("a", Kind::Boolean, false));
        assert_eq!(in_path("a~b+c.d"), "a%7Eb%2Bc.d");
    }
}
