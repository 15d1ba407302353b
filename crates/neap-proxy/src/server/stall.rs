//! Ends an h2 stream whose client takes nothing of its answer.
//!
//! Over HTTP/1.1 the socket tells (see `connection`). An h2 client can answer pings for ever and give its stream no window:
//! hyper then holds a piece of the answer and does not ask for the next, so that no limit of the answer's rings, and the
//! place at the instance stays taken. Here each stream's task notes whom it waits for; what waits for its client for too long
//! is dropped, which resets the stream.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

/// Whom a stream waits for when it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// The handler, for an answer.
    Handler,
    /// Who makes the answer's body, for more of it.
    Source,
    /// The client, to take what there is. True when it has just been given something.
    Client(bool),
}

thread_local! {
    /// Of the stream that is being polled.
    static WAITS: Cell<For> = const { Cell::new(For::Handler) };
}

/// Called from inside a stream's task.
pub(super) fn waits_for(whom: For) {
    WAITS.set(whom);
}

/// Spawns the streams of h2 connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamExecutor {
    /// How long a client may take nothing.
    pub(super) limit: Duration,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        let stream = Stream { future: Box::pin(future), waits: For::Handler, timer: None, limit: self.limit };
        // The stream's task ends with its connection, which owns the other end of its channel.
        tokio::task::spawn_local(stream);
    }
}

struct Stream<F> {
    future: Pin<Box<F>>,
    waits: For,
    timer: Option<Pin<Box<Sleep>>>,
    limit: Duration,
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        WAITS.set(match this.waits {
            For::Client(_) => For::Client(false),
            other => other,
        });
        let polled = this.future.as_mut().poll(cx);
        this.waits = WAITS.get();
        if polled.is_ready() {
            return polled;
        }
        if this.waits != For::Client(false) {
            this.timer = None;
        }
        match this.waits {
            For::Handler | For::Source => Poll::Pending,
            For::Client(_) => {
                let limit = this.limit;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                timer.as_mut().poll(cx)
            }
        }
    }
}
