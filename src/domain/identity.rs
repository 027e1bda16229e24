//! Who asks: tokens, sessions, and their end.

use nexxus_storage::model::{AppId, Caller, DeviceId, Problem, Timestamp, UserId};

use super::Application;

/// A caller whose token was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Identified {
    pub app: AppId,
    pub caller: Caller,
    /// The login that the token stands for; none for the admin token and where the application has no users.
    pub session: Option<String>,
    /// When the token ends; none for the admin token and where the application has no users.
    pub expires_at: Option<Timestamp>,
}

/// What ended before its time: open sockets of it are closed with 4003.
#[derive(Debug, Clone, PartialEq)]
pub enum Revoked {
    Application(AppId),
    User(AppId, UserId),
    Device(AppId, DeviceId),
    Session(AppId, String),
}

/// Checks and issues tokens. Keeps checked ones in a bounded cache that the registry's feed clears, so that a revocation holds
/// at once.
pub struct Identity {}

impl Identity {
    /// Who a request or connection is from. `token`: what followed `Bearer`; `device`: the `nxx-device-id` it came with. A token
    /// that is bound to a device does not work for another one. Without a token: nobody in particular (rules decide); with a
    /// bad one 401.
    pub async fn authenticate(
        &self,
        _app: &Application,
        _token: Option<&str>,
        _device: Option<&DeviceId>,
    ) -> Result<Identified, Problem> {
        todo!()
    }

    /// The application that a token names, unchecked: to find what to check it by.
    pub fn application_of(&self, _token: &str) -> Option<AppId> {
        todo!()
    }

    /// Whether this is the admin token (compared in constant time).
    pub fn is_admin(&self, _token: &str) -> bool {
        todo!()
    }

    /// What is revoked from now on. A receiver that lags has to check all that it holds anew.
    pub fn revocations(&self) -> tokio::sync::broadcast::Receiver<Revoked> {
        todo!()
    }
}
