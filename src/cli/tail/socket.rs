//! The WebSocket of a client command. The upgrade goes through the HTTP client, so that names, certificates and refusals are
//! dealt with once.

use std::{pin::Pin, time::Duration};

use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode, Upgraded, header};
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{CloseFrame, Role, WebSocketConfig},
    },
};

use super::sentence;
use crate::cli::{
    Exit,
    client::{Client, body_of},
};

/// The server pings every 25 s; who is silent for this long is gone.
const SILENCE: Duration = Duration::from_secs(70);
const HANDSHAKE: Duration = Duration::from_secs(20);
/// Largest frame that is taken: an entry with its document and all its patches stays far below.
const FRAME_BYTES: usize = 64 << 20;

pub(super) struct Socket {
    stream: Pin<Box<WebSocketStream<Upgraded>>>,
}

/// Why a connection ended.
pub(super) enum End {
    /// It may be taken up again.
    Lost(String),
    /// It makes no sense to come back.
    Final(Exit),
}

impl Socket {
    /// Connects a device; `since`: where its replay begins.
    pub(super) async fn connect(client: &Client, device: &str, since: Option<&str>) -> Result<Self, End> {
        let key = generate_key();
        let app = client.app().map_err(End::Final)?;
        let request = client
            .request(Method::GET, &["ws"])
            .map_err(End::Final)?
            .query(&[("app", app), ("device", device)])
            .query(&since.map(|since| [("since", since)]))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let shaking = async {
            let response = match client.send(request).await {
                Ok(response) => response,
                Err(Exit::Failed(why)) => return Err(End::Lost(why)),
                Err(exit) => return Err(End::Final(exit)),
            };
            let (status, url) = (response.status(), response.url().clone());
            if status != StatusCode::SWITCHING_PROTOCOLS {
                let Err(exit) = body_of(response).await else {
                    return Err(End::Final(Exit::Failed(format!("{url} answered {status}: no WebSocket is there"))));
                };
                return Err(refused(status, exit));
            }
            let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
            if accepted.is_none_or(|accepted| accepted.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
                return Err(End::Final(Exit::Failed(format!("{url} does not speak WebSocket"))));
            }
            response.upgrade().await.map_err(|error| End::Lost(format!("the connection was lost: {error}")))
        };
        let upgraded = timeout(HANDSHAKE, shaking).await;
        let upgraded = upgraded.unwrap_or_else(|_| Err(End::Lost("the server does not answer".to_owned())))?;
        let config = WebSocketConfig::default().max_message_size(Some(FRAME_BYTES)).max_frame_size(Some(FRAME_BYTES));
        let stream = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        Ok(Self { stream: Box::pin(stream) })
    }

    /// The next frame, as text and as what it says.
    pub(super) async fn next(&mut self) -> Result<(String, Value), End> {
        loop {
            let heard = timeout(SILENCE, self.stream.next()).await;
            let heard = heard.map_err(|_| End::Lost("the server has fallen silent".to_owned()))?;
            match heard {
                Some(Ok(Message::Text(text))) => {
                    let frame = serde_json::from_str(text.as_str());
                    let frame = frame.map_err(|error| End::Lost(format!("the server sent no JSON: {error}")))?;
                    return Ok((text.as_str().to_owned(), frame));
                }
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                // Pings are answered by the library with the next read.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(&error)),
                None => return Err(End::Lost("the connection was lost".to_owned())),
            }
        }
    }

    pub(super) async fn say(&mut self, frame: &Value) -> Result<(), End> {
        self.stream.send(Message::text(frame.to_string())).await.map_err(|error| lost(&error))
    }
}

fn lost(error: &tokio_tungstenite::tungstenite::Error) -> End {
    End::Lost(format!("the connection was lost: {error}"))
}

/// A refused upgrade: what the server cannot do now it may do later, the rest stays refused.
fn refused(status: StatusCode, exit: Exit) -> End {
    match exit {
        Exit::Refused(problem) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            End::Lost(sentence(&problem))
        }
        exit => End::Final(exit),
    }
}

/// What the close codes of the contract (§7) mean to us.
fn closed(frame: Option<CloseFrame>) -> End {
    let failed = |why: &str| End::Final(Exit::Failed(why.to_owned()));
    match frame.as_ref().map(|frame| u16::from(frame.code)) {
        Some(4001) => failed("the token has expired"),
        Some(4003) => failed("the user, the device or the application was revoked"),
        Some(1001) => End::Lost("the server is going away".to_owned()),
        Some(code) => End::Lost(format!("the server closed the connection ({code})")),
        None => End::Lost("the server closed the connection".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_say_whether_to_come_back() {
        for (code, comes_back) in [(1001, true), (1006, true), (1011, true), (4008, true), (4001, false), (4003, false)]
        {
            let frame = CloseFrame { code: code.into(), reason: "".into() };
            assert_eq!(matches!(closed(Some(frame)), End::Lost(_)), comes_back, "{code}");
        }
        assert!(matches!(closed(None), End::Lost(_)));
    }
}
