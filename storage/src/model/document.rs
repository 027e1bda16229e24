//! One instance of a model, with the fields that every document has.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeMap};
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
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Flat {
            id: DocumentId,
            r#type: ModelName,
            app_id: AppId,
            #[serde(default)]
            user_id: Option<UserId>,
            created_at: Timestamp,
            updated_at: Timestamp,
            version: u64,
        }
        // One pass into a map, then the universal fields out of it: cheaper than serde's flatten, which buffers twice.
        let mut fields = Map::<String, Value>::deserialize(deserializer)?;
        let universal: Map<String, Value> =
            UNIVERSAL_FIELDS.iter().filter_map(|name| fields.remove_entry(*name)).collect();
        let flat: Flat = serde_json::from_value(Value::Object(universal)).map_err(D::Error::custom)?;
        Ok(Self {
            app: flat.app_id,
            model: flat.r#type,
            id: flat.id,
            user: flat.user_id,
            created_at: flat.created_at,
            updated_at: flat.updated_at,
            version: flat.version,
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
}
