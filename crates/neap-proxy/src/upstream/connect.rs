//! Connections to upstreams: TCP, with TLS above it where it is wanted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Protocol, Target};
use crate::config::UpstreamConfig;
use crate::error::ProxyError;

/// A connection.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects without Nagle's delay: what we write is a whole message more often than not.
pub(super) async fn connect(target: Target, config: &UpstreamConfig) -> Result<Wire, ProxyError> {
    let (addr, after) = (target.addr, config.connect_timeout);
    let connected = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        match &config.tls {
            None => Ok(Wire::Plain(stream)),
            Some(tls) => {
                let secure = Box::pin(tls.connect(stream, target.protocol == Protocol::H2c)).await?;
                Ok(Wire::Tls(Box::new(secure)))
            }
        }
    };
    match tokio::time::timeout(after, connected).await {
        Err(_elapsed) => Err(ProxyError::ConnectTimeout { target: addr, after }),
        Ok(Err(source)) if is_ours(&source) => Err(ProxyError::Exhausted { target: addr, source }),
        Ok(Err(source)) => Err(ProxyError::Connect { target: addr, source }),
        Ok(Ok(wire)) => Ok(wire),
    }
}

impl Wire {
    /// Whether it is worth while to make room for what comes.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_read_ready(cx),
            // It may hold what it has read already.
            Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }
}

/// Whether a failure to connect says something about us and nothing about the other side: no local port, descriptor or
/// memory is left.
fn is_ours(error: &io::Error) -> bool {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const EADDRNOTAVAIL: i32 = 99;
    const ENOBUFS: i32 = 105;
    matches!(error.raw_os_error(), Some(ENOMEM | ENFILE | EMFILE | EADDRNOTAVAIL | ENOBUFS))
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_troubles_are_told_from_those_of_others() {
        for (code, ours) in [(24, true), (99, true), (111, false), (113, false), (104, false)] {
            assert_eq!(is_ours(&io::Error::from_raw_os_error(code)), ours, "{code}");
        }
        assert!(!is_ours(&io::ErrorKind::ConnectionRefused.into()));
    }
}
