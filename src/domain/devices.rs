//! Devices: registering, connecting, acknowledging, expiring.

use nexxus_storage::{
    model::{DeviceId, Offset, Problem},
    registry::records,
};

use super::{Application, Domain, Identified};
use crate::service::{Failure, Stop};

impl Domain {
    /// Registers a device for this caller: its record and whether it is new. 409 when it is another user's. `keep_for` in
    /// seconds, bounded by `devices.keep_for_max`.
    pub async fn register_device(
        &self,
        _app: &Application,
        _identified: &Identified,
        _id: Option<DeviceId>,
        _name: Option<String>,
        _keep_for: Option<u64>,
    ) -> Result<(records::Device, bool), Problem> {
        todo!()
    }

    /// A transport worker (by its queue) takes a connection of this device: registers the device where it is new, raises its
    /// generation, and tells the transport manager where to send. True beside it: the device was known before.
    pub async fn connect_device(
        &self,
        _app: &Application,
        _identified: &Identified,
        _device: &DeviceId,
        _queue: &str,
    ) -> Result<(records::Device, bool), Problem> {
        todo!()
    }

    /// The worker's last connection of this device has ended; `generation` is the highest that its connections had. A record of
    /// a newer connection stays. `keepFor: 0` removes the device now, unless it is connected elsewhere.
    pub async fn disconnect_device(
        &self,
        _app: &nexxus_storage::model::AppId,
        _device: &DeviceId,
        _queue: &str,
        _generation: u64,
    ) -> Result<(), Problem> {
        todo!()
    }

    /// Removes a device with its subscriptions, sessions, cursor; its tokens end and its sockets close.
    pub async fn remove_device(
        &self,
        _app: &nexxus_storage::model::AppId,
        _device: &DeviceId,
    ) -> Result<bool, Problem> {
        todo!()
    }

    /// Where the device stands: the last acknowledged offset, else the one of its registration.
    pub async fn cursor_of(&self, _device: &records::Device) -> Result<Offset, Problem> {
        todo!()
    }

    /// Moves the cursor; an older offset does not turn it back. Durable within a second, or on return.
    pub async fn acknowledge(&self, _device: &records::Device, _offset: Offset, _at_once: bool) -> Result<(), Problem> {
        todo!()
    }

    /// Removes devices whose `keepFor` has passed without a connection, counted while this process ran; until told to stop.
    pub async fn expire_devices(self, _stop: Stop) -> Result<(), Failure> {
        todo!()
    }
}
