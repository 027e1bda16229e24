//! Devices: registering, connecting, acknowledging, expiring.
//!
//! Every write that a device stands and falls with (its expiry, its connections, its subscriptions) is conditional on its record:
//! who connects or subscribes writes it, so that an expiry that has not seen this fails.

mod cursors;
mod expiry;

use nexxus_storage::{
    ErrorKind, Registry, Result,
    model::{AppId, DeviceId, Offset, Problem, Timestamp, UserId, problem::ProblemKind},
    open::Demand,
    registry::{
        Expect, Key, Kind, Write,
        records::{Connection, Device, Session, UserDevice},
    },
};
use serde_json::{Value, json};

pub use self::cursors::Cursors;
use super::{
    Application, Domain, Identified,
    identity::{RACES, lost_races},
};

/// A device as it goes out: `{ id, userId?, name?, keepFor, createdAt, lastSeen? }`.
pub fn device_to_json(device: &Device) -> Value {
    let mut shown = json!({ "id": device.id, "keepFor": device.keep_for, "createdAt": device.created_at });
    let members = [
        ("userId", device.user.as_ref().map(|user| json!(user))),
        ("name", device.name.as_ref().map(|name| json!(name))),
        ("lastSeen", device.last_seen.map(|seen| json!(seen))),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            shown[name] = value;
        }
    }
    shown
}

impl Domain {
    /// Registers a device for this caller: its record and whether it is new. 409 when it is another user's. `keep_for` in
    /// seconds; more than `devices.keep_for_max` becomes that, as the record shows.
    pub async fn register_device(
        &self,
        app: &Application,
        identified: &Identified,
        id: Option<DeviceId>,
        name: Option<String>,
        keep_for: Option<u64>,
    ) -> Result<(Device, bool), Problem> {
        may_have_devices(app, identified)?;
        let id = id.unwrap_or_else(DeviceId::generate);
        let registry = &self.backends.registry;
        for _ in 0..RACES {
            let outcome = match self.device_record(app.id(), &id).await? {
                Some((device, _)) if device.user != identified.caller.user => {
                    return Err(Problem::new(ProblemKind::Exists, format!("the device {id} is another user's")));
                }
                Some((device, revision)) => {
                    let changed = Device {
                        name: name.clone().or_else(|| device.name.clone()),
                        keep_for: keep_for.map_or(device.keep_for, |keep_for| self.bounded(keep_for)),
                        ..device.clone()
                    };
                    if changed == device {
                        return Ok((device, false));
                    }
                    registry.put(&changed, Expect::Revision(revision)).await.map(|()| (changed, false))
                }
                None => {
                    self.backends.admit(Demand::Record)?;
                    let device = self
                        .new_device(app.id(), identified.caller.user.clone(), id.clone(), name.clone(), keep_for)
                        .await?;
                    registry.write(writes_of_new(&device)?).await.map(|()| (device, true))
                }
            };
            match outcome {
                Err(error) if error.kind == ErrorKind::Conflict => {}
                outcome => return Ok(outcome?),
            }
        }
        Err(lost_races("the device"))
    }

    /// A device that is not registered yet.
    pub async fn new_device(
        &self,
        app: &AppId,
        user: Option<UserId>,
        id: DeviceId,
        name: Option<String>,
        keep_for: Option<u64>,
    ) -> Result<Device> {
        // Not the head: what is logged and not yet applied may come after a subscription that is made now.
        let registered_at = self.backends.change_log.marks(app).await?.applied;
        let keep_for = keep_for.unwrap_or_else(|| self.config.now().devices.keep_for.as_secs());
        Ok(Device {
            app: app.clone(),
            id,
            user,
            name,
            keep_for: self.bounded(keep_for),
            created_at: Timestamp::now(),
            registered_at,
            last_seen: None,
            generation: 0,
            revoked: false,
        })
    }

    fn bounded(&self, keep_for: u64) -> u64 {
        keep_for.min(self.config.now().devices.keep_for_max.as_secs())
    }

    /// 404 when there is none.
    pub async fn device(&self, app: &AppId, device: &DeviceId) -> Result<Device, Problem> {
        match self.device_record(app, device).await? {
            Some((device, _)) => Ok(device),
            None => Err(Problem::new(ProblemKind::NotFound, format!("there is no device {device}"))),
        }
    }

    /// The record of a device and its revision.
    pub async fn device_record(&self, app: &AppId, device: &DeviceId) -> Result<Option<(Device, u64)>> {
        self.backends.registry.load(&Key::device(app, device)).await
    }

    /// The devices of a user, by id.
    pub async fn devices_of(&self, app: &AppId, user: &UserId) -> Result<Vec<Device>, Problem> {
        let prefix = format!("{user}/");
        let named: Vec<UserDevice> = self.backends.registry.load_all(Kind::UserDevice, Some(app), &prefix).await?;
        let mut devices = Vec::with_capacity(named.len());
        for UserDevice { device, .. } in named {
            // One that has expired is still named while sessions of it are open.
            devices.extend(self.device_record(app, &device).await?.map(|(device, _)| device));
        }
        Ok(devices)
    }

    /// Whether a transport worker holds a connection of the device.
    pub async fn is_connected(&self, app: &AppId, device: &DeviceId) -> Result<bool> {
        let prefix = format!("{device}/");
        let held = self.backends.registry.list(Kind::Connection, Some(app), &prefix, None, 1).await?;
        Ok(!held.is_empty())
    }

    /// A transport worker (by its queue) takes a connection of this device: registers the device where it is new, raises its
    /// generation, and tells the transport manager where to send. True beside it: the device was known before.
    pub async fn connect_device(
        &self,
        app: &Application,
        identified: &Identified,
        device: &DeviceId,
        queue: &str,
    ) -> Result<(Device, bool), Problem> {
        may_have_devices(app, identified)?;
        for _ in 0..RACES {
            let stored = self.device_record(app.id(), device).await?;
            let was_known = stored.is_some();
            let (connected, writes) = match stored {
                Some((stored, _)) if stored.user != identified.caller.user => {
                    return Err(Problem::new(ProblemKind::Forbidden, format!("the device {device} is not yours")));
                }
                Some((stored, revision)) => {
                    let (generation, last_seen) = (stored.generation + 1, Some(Timestamp::now()));
                    let connected = Device { generation, last_seen, revoked: false, ..stored };
                    let write = Write::put(&connected, Expect::Revision(revision))?;
                    (connected, vec![write])
                }
                None => {
                    let user = identified.caller.user.clone();
                    let new = self.new_device(app.id(), user, device.clone(), None, None).await?;
                    let connected = Device { generation: 1, last_seen: Some(new.created_at), ..new };
                    let writes = writes_of_new(&connected)?;
                    (connected, writes)
                }
            };
            match self.backends.registry.write(writes).await {
                Ok(()) => {}
                Err(error) if error.kind == ErrorKind::Conflict => continue,
                Err(error) => return Err(error.into()),
            }
            self.hold_connection(&connected, queue).await?;
            return Ok((connected, was_known));
        }
        Err(lost_races("the device"))
    }

    /// Writes that a worker holds a connection of the device; the record of a newer connection stays.
    async fn hold_connection(&self, device: &Device, queue: &str) -> Result<(), Problem> {
        let registry = &self.backends.registry;
        let held = Connection {
            app: device.app.clone(),
            device: device.id.clone(),
            queue: queue.to_owned(),
            generation: device.generation,
        };
        for _ in 0..RACES {
            let stored: Option<(Connection, u64)> =
                registry.load(&Key::connection(&device.app, &device.id, queue)).await?;
            let expect = match stored {
                Some((stored, _)) if stored.generation >= held.generation => return Ok(()),
                Some((_, revision)) => Expect::Revision(revision),
                None => Expect::Absent,
            };
            match registry.put(&held, expect).await {
                Err(error) if error.kind == ErrorKind::Conflict => {}
                outcome => return Ok(outcome?),
            }
        }
        Err(lost_races("the connection of the device"))
    }

    /// The worker's last connection of this device has ended; `generation` is the highest that its connections had. A record of
    /// a newer connection stays. `keepFor: 0` removes the device now, unless it is connected elsewhere.
    pub async fn disconnect_device(
        &self,
        app: &AppId,
        device: &DeviceId,
        queue: &str,
        generation: u64,
    ) -> Result<(), Problem> {
        let registry = &self.backends.registry;
        let key = Key::connection(app, device, queue);
        if let Some((held, revision)) = registry.load::<Connection>(&key).await? {
            if held.generation > generation {
                return Ok(());
            }
            let removal = Write { key, value: None, expect: Expect::Revision(revision) };
            match registry.write(vec![removal]).await {
                Ok(()) => {}
                Err(error) if error.kind == ErrorKind::Conflict => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        for _ in 0..RACES {
            let Some((stored, revision)) = self.device_record(app, device).await? else { return Ok(()) };
            if stored.generation > generation || self.is_connected(app, device).await? {
                return Ok(());
            }
            if stored.keep_for == 0 {
                self.expire_device(&stored, revision).await?;
                return Ok(());
            }
            let seen = Device { last_seen: Some(Timestamp::now()), ..stored };
            match registry.put(&seen, Expect::Revision(revision)).await {
                Err(error) if error.kind == ErrorKind::Conflict => {}
                outcome => return Ok(outcome?),
            }
        }
        Err(lost_races("the device"))
    }

    /// Removes a device with its subscriptions, sessions, cursor; its tokens end and its sockets close.
    pub async fn remove_device(&self, app: &AppId, device: &DeviceId) -> Result<bool, Problem> {
        let registry = &self.backends.registry;
        for _ in 0..RACES {
            let stored = self.revoke_connections(app, device).await?;
            let sessions: Vec<Session> = registry.load_all(Kind::Session, Some(app), &format!("{device}/")).await?;
            let Some(user) = stored.as_ref().map(|(stored, _)| stored.user.clone()).or_else(|| {
                // Expired, but logins of it are still open.
                sessions.first().map(|session| Some(session.user.clone()))
            }) else {
                return Ok(false);
            };
            let mut writes = self.belongings(app, device).await?;
            writes.extend(sessions.iter().map(|session| Write::remove(Key::session(app, device, &session.id))));
            writes.extend(user.map(|user| Write::remove(Key::user_device(app, &user, device))));
            if let Some((_, revision)) = stored {
                let expect = Expect::Revision(revision);
                writes.push(Write { key: Key::device(app, device), value: None, expect });
            }
            match registry.write(writes).await {
                Err(error) if error.kind == ErrorKind::Conflict => continue,
                outcome => outcome?,
            }
            self.cursors.forget(app, device);
            return Ok(true);
        }
        Err(lost_races("the device"))
    }

    /// `POST /admin/devices/:id/disconnect`: ends the sessions of a device and closes its sockets with 4003. It stays registered.
    pub async fn kick_device(&self, app: &AppId, device: &DeviceId) -> Result<(), Problem> {
        self.identity.end_sessions_of_device(app, device, |_| true).await?;
        // Connections without a session (of admins, and where there are no users) know the device only.
        self.revoke_connections(app, device).await?;
        Ok(())
    }

    /// Tells every process in the device's record that its connections have to end; gives the record as it is then.
    async fn revoke_connections(&self, app: &AppId, device: &DeviceId) -> Result<Option<(Device, u64)>, Problem> {
        for _ in 0..RACES {
            let Some((stored, revision)) = self.device_record(app, device).await? else { return Ok(None) };
            let revoked = Device { revoked: true, ..stored };
            match self.backends.registry.put(&revoked, Expect::Revision(revision)).await {
                Ok(()) => return Ok(self.device_record(app, device).await?),
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(lost_races("the device"))
    }

    /// The removals of a device's subscriptions and cursor.
    async fn belongings(&self, app: &AppId, device: &DeviceId) -> Result<Vec<Write>> {
        let prefix = format!("{device}/");
        let mut writes = vec![Write::remove(Key::cursor(app, device))];
        let mut after: Option<String> = None;
        loop {
            let page =
                self.backends.registry.list(Kind::Subscription, Some(app), &prefix, after.as_deref(), 1_000).await?;
            let is_last = page.len() < 1_000;
            after = page.last().map(|record| record.key.id.clone());
            writes.extend(page.into_iter().map(|record| Write::remove(record.key)));
            if is_last {
                return Ok(writes);
            }
        }
    }

    /// Removes a device that is connected nowhere, if its record is still the one that was read; gives whether it was.
    async fn expire_device(&self, device: &Device, revision: u64) -> Result<bool> {
        let registry = &self.backends.registry;
        let mut writes = self.belongings(&device.app, &device.id).await?;
        let expect = Expect::Revision(revision);
        writes.push(Write { key: Key::device(&device.app, &device.id), value: None, expect });
        match registry.write(writes).await {
            Ok(()) => {}
            Err(error) if error.kind == ErrorKind::Conflict => return Ok(false),
            Err(error) => return Err(error),
        }
        self.cursors.forget(&device.app, &device.id);
        if let Some(user) = &device.user {
            forget_unused(&**registry, &device.app, user, &device.id).await?;
        }
        Ok(true)
    }

    /// Where the device stands: the last acknowledged offset, else the one of its registration.
    pub async fn cursor_of(&self, device: &Device) -> Result<Offset, Problem> {
        let acknowledged = self.cursors.get(&*self.backends.registry, &device.app, &device.id).await?;
        Ok(acknowledged.unwrap_or(device.registered_at))
    }

    /// Moves the cursor; an older offset does not turn it back. Durable within a second, or on return. 507 when the disk is full.
    pub async fn acknowledge(
        &self,
        app: &AppId,
        device: &DeviceId,
        offset: Offset,
        at_once: bool,
    ) -> Result<(), Problem> {
        self.backends.admit(Demand::Record)?;
        self.cursors.acknowledge(app, device, offset);
        if at_once {
            self.cursors.flush(&*self.backends.registry).await?;
        }
        Ok(())
    }
}

/// The writes that register a device.
pub fn writes_of_new(device: &Device) -> Result<Vec<Write>> {
    let mut writes = vec![Write::put(device, Expect::Absent)?];
    if let Some(user) = &device.user {
        writes.push(names_user(&device.app, user, &device.id)?);
    }
    Ok(writes)
}

/// The write that a login goes with: while it is there, the sessions of the device are found by its user.
pub fn names_user(app: &AppId, user: &UserId, device: &DeviceId) -> Result<Write> {
    Write::put(&UserDevice { app: app.clone(), user: user.clone(), device: device.clone() }, Expect::Anything)
}

/// Removes the entry by which a user's sessions are found, when neither the device nor a session of it is there any more. A login
/// writes the entry again, so a removal that has not seen the login fails.
pub(super) async fn forget_unused(
    registry: &dyn Registry,
    app: &AppId,
    user: &UserId,
    device: &DeviceId,
) -> Result<()> {
    let key = Key::user_device(app, user, device);
    let Some(entry) = registry.get(&key).await? else { return Ok(()) };
    let is_used = registry.get(&Key::device(app, device)).await?.is_some()
        || !registry.list(Kind::Session, Some(app), &format!("{device}/"), None, 1).await?.is_empty();
    if is_used {
        return Ok(());
    }
    let removal = Write { key, value: None, expect: Expect::Revision(entry.revision) };
    match registry.write(vec![removal]).await {
        Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
        outcome => outcome,
    }
}

fn may_have_devices(app: &Application, identified: &Identified) -> Result<(), Problem> {
    let caller = &identified.caller;
    if app.record.auth_enabled && caller.user.is_none() && !caller.admin {
        return Err(Problem::new(ProblemKind::Unauthorized, "devices belong to users: sign in"));
    }
    Ok(())
}
