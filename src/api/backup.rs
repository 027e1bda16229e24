//! `POST /admin/backup`: a backup of everything, streamed as it is made.

use std::{io, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, Response, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};
use tracing::{info, warn};

use super::{Answer, Api, auth::Admin};
use crate::{domain::backups::count, service::Stop};

/// How many bytes the parts of the backup have: for who shows progress.
const BACKUP_BYTES: &str = "nxx-backup-bytes";
/// What is sent at once, and how much of that may wait for the client.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES: usize = 4;
/// A client that takes nothing for so long has given up: what the backup keeps is let go.
const PATIENCE: Duration = Duration::from_secs(60);

/// The backup as a body. One that fails on its way breaks off; only a whole one ends as a backup does.
pub(super) async fn take(State(api): State<Api>, _: Admin) -> Answer {
    let snapshot = api.domain.snapshot().await.inspect_err(|_| count(false))?;
    let bytes = snapshot.manifest().bytes();
    let (pieces, received) = mpsc::channel(PIECES);
    let out = PieceWriter {
        pieces: pieces.clone(),
        piece: BytesMut::new(),
        runtime: Handle::current(),
        stopping: api.domain.stopping.clone(),
    };
    tokio::spawn(async move {
        let outcome = snapshot.write_aside(out).await;
        count(outcome.is_ok());
        match outcome {
            Ok(manifest) => info!(sequence = manifest.sequence, bytes, "backed up"),
            Err(error) => {
                warn!(%error, "a backup broke off");
                // Without it the body would end as if it were whole.
                let _gone = timeout(PATIENCE, pieces.send(Err(io::Error::other("the backup broke off")))).await;
            }
        }
    });
    let body = stream::unfold(received, |mut received| async { received.recv().await.map(|piece| (piece, received)) });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(BACKUP_BYTES, HeaderValue::from(bytes));
    Ok(response)
}

/// Hands what is written on in pieces, and waits while too many wait for the client.
struct PieceWriter {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
    runtime: Handle,
    /// A node that stops does not wait for a backup.
    stopping: Stop,
}

impl io::Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = self.piece.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        // The clock is there within the runtime only.
        let sent = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => None,
                sent = timeout(PATIENCE, self.pieces.send(Ok(piece))) => Some(sent),
            }
        });
        match sent {
            None => Err(io::Error::other("the server is stopping")),
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(_))) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client went away")),
            Some(Err(_)) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing any more")),
        }
    }
}
