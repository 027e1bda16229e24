//! The admin token and what tokens are signed with: from the configuration, else made once and kept in the registry.

use std::path::Path;

use jsonwebtoken::{DecodingKey, EncodingKey};
use nexxus_storage::{
    Error, ErrorKind, Registry, Result,
    registry::{Expect, Key, records::Installation},
};
use sha2::{Digest, Sha256};

use crate::config::Config;

/// The file of the admin token in the data directory.
const ADMIN_TOKEN_FILE: &str = "admin_token";

pub(super) struct Secrets {
    admin_token: String,
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    /// What each refresh token follows from the one before with.
    pub(super) chain: [u8; 32],
}

impl Secrets {
    pub(super) async fn open(registry: &dyn Registry, config: &Config) -> Result<Self> {
        let kept = kept_or_made(registry).await?;
        let configured = |setting: &String, kept: String| if setting.is_empty() { kept } else { setting.clone() };
        let admin_token = configured(&config.auth.admin_token, kept.admin_token);
        let jwt_secret = configured(&config.auth.jwt_secret, kept.jwt_secret);
        write_admin_token(&config.data.dir, &admin_token).await?;
        Ok(Self {
            admin_token,
            encoding: EncodingKey::from_secret(jwt_secret.as_bytes()),
            decoding: DecodingKey::from_secret(jwt_secret.as_bytes()),
            chain: Sha256::new().chain_update("refresh tokens\n").chain_update(&jwt_secret).finalize().into(),
        })
    }

    /// Compares every byte, whatever the first ones are, so that the time tells nothing.
    pub(super) fn is_admin(&self, token: &str) -> bool {
        let (given, own) = (token.as_bytes(), self.admin_token.as_bytes());
        let differences = given.iter().zip(own).fold(0, |differences, (given, own)| differences | (given ^ own));
        given.len() == own.len() && std::hint::black_box(differences) == 0
    }
}

/// The first process of an installation makes the secrets; all others take them.
async fn kept_or_made(registry: &dyn Registry) -> Result<Installation> {
    let key = Key::installation();
    loop {
        if let Some((kept, _)) = registry.load::<Installation>(&key).await? {
            return Ok(kept);
        }
        let made = Installation { admin_token: random_text(), jwt_secret: random_text() };
        match registry.put(&made, Expect::Absent).await {
            Ok(()) => return Ok(made),
            Err(error) if error.kind == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

/// 256 random bits as text.
pub(super) fn random_text() -> String {
    let bytes: [u8; 32] = rand::random();
    hex(&bytes)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Readable by the owner only. Written anew at each start, so that it is the one in force.
async fn write_admin_token(dir: &Path, token: &str) -> Result<()> {
    let path = dir.join(ADMIN_TOKEN_FILE);
    let failed = |error| Error::io("write admin token", path.display().to_string(), error);
    let draft = dir.join(format!("{ADMIN_TOKEN_FILE}.tmp"));
    match tokio::fs::remove_file(&draft).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    options.mode(0o600);
    let mut file = options.open(&draft).await.map_err(failed)?;
    tokio::io::AsyncWriteExt::write_all(&mut file, format!("{token}\n").as_bytes()).await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    tokio::fs::rename(&draft, &path).await.map_err(failed)
}
