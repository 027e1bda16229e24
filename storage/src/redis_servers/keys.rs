//! The names of keys. What one script touches has the same hash tag, so that a cluster keeps it in one place.

use crate::{Error, ErrorKind, Result, model::AppId};

/// Makes the keys of one installation.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// `Invalid` for a prefix that is empty, long, or would move the hash tag.
    pub(super) fn new(prefix: &str) -> Result<Self> {
        let fits = (1..=64).contains(&prefix.len())
            && prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte));
        if !fits {
            let message =
                format!("`redis.prefix` is \"{prefix}\": 1 to 64 letters, digits and any of . _ : - are allowed");
            return Err(Error::new(ErrorKind::Invalid, "open redis", message));
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// A key among those of the log of an application.
    pub(crate) fn of_app(&self, app: &AppId, name: &str) -> String {
        format!("{}:{{{app}}}:{name}", self.prefix)
    }

    /// A key of a part of the registry. Applications have no slash in their names.
    pub(crate) fn of_part(&self, part: u16, name: &str) -> String {
        format!("{}:{{/{part}}}:{name}", self.prefix)
    }

    /// A key of the installation.
    pub(crate) fn of_all(&self, name: &str) -> String {
        format!("{}:{{/}}:{name}", self.prefix)
    }

    /// A key that no script needs together with another one.
    pub(crate) fn alone(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_leaves_the_hash_tag_alone() {
        for (prefix, fits) in [("nexxus", true), ("a.b:c-d_1", true), ("", false), ("a{b}", false), ("a b", false)] {
            assert_eq!(Keys::new(prefix).is_ok(), fits, "{prefix}");
        }
        assert!(Keys::new(&"x".repeat(65)).is_err());
        let keys = Keys::new("n").expect("a prefix");
        let app = AppId::parse("tasks").expect("an id");
        assert_eq!(keys.of_app(&app, "log"), "n:{tasks}:log");
        assert_eq!(keys.of_part(3, "revision"), "n:{/3}:revision");
    }
}
