//! One instance of a model, with the fields that every document has.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::{Map, Value};

use super::{AppId, DocumentId, ModelName, Timestamp, UserId, schema::UNIVERSAL_FIELDS};

/// A document as it is stored and as it goes out. `fields` holds what the schema names, in canonical form: no nulls, dates as
/// [`Timestamp`] prints them, integral numbers as integers.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub app: AppId,
    pub model: ModelName,
    pub id: DocumentId,
    /// The owner; none for what an admin made for nobody.
    pub user: Option<UserId>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub version: u64,
    pub fields: Map<String, Value>,
}

impl Document {
    /// The value at a path into the fields; a path leads through objects, never into arrays.
    pub fn field(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.fields.get(first)?, |value, key| value.as_object()?.get(key))
    }
}

impl Serialize for Document {
    /// The universal fields first, then the document's own.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len() + UNIVERSAL_FIELDS.len()))?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("type", &self.model)?;
        map.serialize_entry("appId", &self.app)?;
        if let Some(user) = &self.user {
            map.serialize_entry("userId", user)?;
        }
        map.serialize_entry("createdAt", &self.created_at)?;
        map.serialize_entry("updatedAt", &self.updated_at)?;
        map.serialize_entry("version", &self.version)?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Flat)
    }
}

/// Reads a document member by member: serde's `flatten` would buffer all of them first, and documents are read all the time.
struct Flat;

impl<'de> Visitor<'de> for Flat {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let (mut id, mut model, mut app, mut user) = (None, None, None, None);
        let (mut created_at, mut updated_at, mut version) = (None, None, None);
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "id" => id = Some(map.next_value()?),
                "type" => model = Some(map.next_value()?),
                "appId" => app = Some(map.next_value()?),
                "userId" => user = map.next_value()?,
                "createdAt" => created_at = Some(map.next_value()?),
                "updatedAt" => updated_at = Some(map.next_value()?),
                "version" => version = Some(map.next_value()?),
                _ => {
                    fields.insert(name, map.next_value()?);
                }
            }
        }
        let missing = A::Error::missing_field;
        Ok(Document {
            app: app.ok_or_else(|| missing("appId"))?,
            model: model.ok_or_else(|| missing("type"))?,
            id: id.ok_or_else(|| missing("id"))?,
            user,
            created_at: created_at.ok_or_else(|| missing("createdAt"))?,
            updated_at: updated_at.ok_or_else(|| missing("updatedAt"))?,
            version: version.ok_or_else(|| missing("version"))?,
            fields,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn goes_out_flat_and_comes_back() {
        let flat = json!({
            "id": "d1", "type": "task", "appId": "a", "userId": "u", "createdAt": "2026-11-24T17:11:29.123Z",
            "updatedAt": "2026-11-24T17:11:30.000Z", "version": 3, "title": "x", "meta": { "tags": ["a"] },
        });
        let document: Document = serde_json::from_value(flat.clone()).expect("a document");
        assert_eq!(document.field(&["meta".into(), "tags".into()]), Some(&json!(["a"])));
        assert_eq!(document.field(&["title".into(), "x".into()]), None);
        assert_eq!(serde_json::to_value(&document).expect("json"), flat);
    }

    #[test]
    fn only_the_owner_may_be_missing() {
        let flat = json!({
            "id": "d1", "type": "task", "appId": "a", "createdAt": "2026-11-24T17:11:29.123Z",
            "updatedAt": "2026-11-24T17:11:30.000Z", "version": 3,
        });
        let read = |flat: &Value| serde_json::from_value::<Document>(flat.clone());
        assert_eq!(read(&flat).expect("a document").user, None);
        for name in ["id", "type", "appId", "createdAt", "updatedAt", "version"] {
            let mut without = flat.clone();
            without.as_object_mut().and_then(|members| members.remove(name)).expect("a member");
            let error = read(&without).expect_err("refused").to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(read(&json!([])).is_err());
    }
}
