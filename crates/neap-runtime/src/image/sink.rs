//! A blob written from async code: bytes are gathered and hashed and written on a blocking thread in large pieces.

use bytes::Bytes;

use super::error::StoreError;
use super::store::BlobWriter;

/// Bytes gathered before a blocking thread takes them: large enough that the hop does not count, small enough to
/// bound what a slow disk can pile up.
const PIECE: usize = 1 << 20;

pub(super) struct Sink {
    /// `None` only while a piece is being written; a write that was cancelled leaves it so and the sink is lost.
    writer: Option<BlobWriter>,
    pending: Vec<Bytes>,
    pending_len: usize,
}

impl Sink {
    pub(super) fn new(writer: BlobWriter) -> Self {
        Self { writer: Some(writer), pending: Vec::new(), pending_len: 0 }
    }

    /// Bytes taken so far, written or gathered.
    pub(super) fn len(&self) -> u64 {
        self.writer.as_ref().map_or(0, BlobWriter::len) + self.pending_len as u64
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.pending_len += bytes.len();
        self.pending.push(bytes);
        if self.pending_len >= PIECE { self.flush().await } else { Ok(()) }
    }

    pub(super) async fn flush(&mut self) -> Result<(), StoreError> {
        let pieces = std::mem::take(&mut self.pending);
        self.pending_len = 0;
        if pieces.is_empty() {
            return Ok(());
        }
        self.blocking(move |writer| pieces.iter().try_for_each(|piece| writer.write(piece))).await
    }

    pub(super) async fn restart(&mut self) -> Result<(), StoreError> {
        self.pending.clear();
        self.pending_len = 0;
        self.blocking(BlobWriter::restart).await
    }

    /// Checks and installs the blob; see [`BlobWriter::finish`].
    pub(super) async fn finish(mut self, what: String, want: Option<String>) -> Result<String, StoreError> {
        self.flush().await?;
        let writer = self.writer.take().ok_or_else(lost)?;
        super::blocking(move || writer.finish(&what, want.as_deref())).await
    }

    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut BlobWriter) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut writer = self.writer.take().ok_or_else(lost)?;
        let (writer, answer) = super::blocking(move || {
            let answer = work(&mut writer);
            Ok((writer, answer))
        })
        .await?;
        self.writer = Some(writer);
        answer
    }
}

fn lost() -> StoreError {
    StoreError::Missing { what: "an upload whose last write was cancelled".to_owned() }
}
