//! What the transport manager sends to one transport worker: frames and whom they are for, and what they cover.

use bytes::Bytes;
use nexxus_storage::{
    model::{AppId, DeviceId, Offset},
    queue::Encode,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Typed, to_json};

/// Frames for devices of one worker, of one application, in the order of their offsets.
#[derive(Debug, Clone, PartialEq)]
pub struct ToDevices {
    /// The part of the log that this is all of, for the worker that gets it.
    pub covers: Covers,
    /// In the order of their offsets; empty where nothing was for its devices.
    pub messages: Vec<DeviceMessage>,
}

/// The part of the log that was matched: everything above `after`, up to `upto`. A worker whose last `upto` is below `after` has
/// missed something, and reads it from the change log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Covers {
    /// The application whose log it is.
    pub app: AppId,
    /// Above this.
    pub after: Offset,
    /// Up to this one, which is included.
    pub upto: Offset,
}

/// One frame and every device of the worker that gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceMessage {
    /// The change that the frame tells of.
    pub offset: Offset,
    /// Who gets it; the worker knows which connections each of them has.
    pub devices: Vec<DeviceId>,
    /// The text of the frame (contract §7), encoded once.
    pub frame: Bytes,
}

impl DeviceMessage {
    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        64 + self.devices.len() * 48 + self.frame.len()
    }
}

#[derive(Serialize, Deserialize)]
struct Wire<M> {
    covers: Covers,
    batch: Vec<M>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMessage<D, F> {
    event: Tag,
    offset: Offset,
    device_ids: D,
    data: F,
}

#[derive(Serialize, Deserialize)]
enum Tag {
    #[serde(rename = "device_message")]
    DeviceMessage,
}

impl Encode for ToDevices {
    fn encode(&self) -> Bytes {
        let batch = self
            .messages
            .iter()
            .filter_map(|message| {
                let frame: &RawValue = serde_json::from_slice(&message.frame).ok()?;
                Some(WireMessage {
                    event: Tag::DeviceMessage,
                    offset: message.offset,
                    device_ids: &message.devices,
                    data: frame,
                })
            })
            .collect();
        to_json(&Wire { covers: self.covers.clone(), batch })
    }

    fn weight(&self) -> usize {
        128 + self.messages.iter().map(DeviceMessage::weight).sum::<usize>()
    }
}

impl Typed for ToDevices {
    fn decode(bytes: &Bytes) -> serde_json::Result<Self> {
        let wire: Wire<WireMessage<Vec<DeviceId>, Box<RawValue>>> = serde_json::from_slice(bytes)?;
        let messages = wire
            .batch
            .into_iter()
            .map(|message| DeviceMessage {
                offset: message.offset,
                devices: message.device_ids,
                frame: Bytes::from(String::from(Box::<str>::from(message.data)).into_bytes()),
            })
            .collect();
        Ok(Self { covers: wire.covers, messages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_from_the_wire_to_the_letter() {
        let message = ToDevices {
            covers: Covers {
                app: AppId::parse("a").expect("an id"),
                after: Offset::new(1, 4),
                upto: Offset::new(1, 5),
            },
            messages: vec![DeviceMessage {
                offset: Offset::new(1, 5),
                devices: vec![DeviceId::parse("phone").expect("an id")],
                frame: Bytes::from_static(br#"{"event":"model_created","data":{"x":1.0}}"#),
            }],
        };
        assert_eq!(ToDevices::decode(&message.encode()).expect("decodes"), message);
    }
}
