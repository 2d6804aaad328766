//! Standard error, written by a thread of its own: a terminal, a pipe or a disk that is slow never holds the run up, and
//! one that is gone never ends it.

use std::io::{self, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the live view is drawn.
const REFRESH: Duration = Duration::from_millis(50);

/// How long what was said last may take to be written.
const PATIENCE: Duration = Duration::from_secs(5);

enum Message {
    Text(String),
    Close,
}

/// What draws the live view.
pub(super) type Frame = Box<dyn Fn() -> String + Send>;

/// The thread, from here.
#[derive(Debug)]
pub(super) struct Screen {
    to_thread: Sender<Message>,
    closed: Mutex<Receiver<()>>,
}

impl Screen {
    /// Begins to write, and to draw the live view where there is one.
    pub(super) fn open(frame: Option<Frame>) -> Self {
        let (to_thread, messages) = channel();
        let (close, closed) = channel();
        let thread = std::thread::Builder::new().name("screen".to_owned());
        // Without a thread nothing is shown; the run goes on, and its exit code tells.
        let _ = thread.spawn(move || {
            match frame {
                Some(frame) => draw(&messages, &frame),
                None => write(&messages),
            }
            let _ = close.send(());
        });
        Self { to_thread, closed: Mutex::new(closed) }
    }

    /// Says it as soon as what was said before is written.
    pub(super) fn say(&self, text: String) {
        let _ = self.to_thread.send(Message::Text(text));
    }

    /// Clears the live view, and waits until all is written; not forever, where nobody reads.
    pub(super) fn close(&self) {
        let _ = self.to_thread.send(Message::Close);
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = closed.recv_timeout(PATIENCE);
    }
}

fn write(messages: &Receiver<Message>) {
    while let Ok(Message::Text(text)) = messages.recv() {
        // A reader that has gone away, as in `… | head -1`, misses nothing.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

fn draw(messages: &Receiver<Message>, frame: &Frame) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(30));
    bar.set_style(ProgressStyle::with_template("{msg}").expect("this is a template"));
    let mut next = Instant::now();
    loop {
        match messages.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Message::Text(text)) => bar.suspend(|| {
                let _ = io::stderr().write_all(text.as_bytes());
            }),
            Ok(Message::Close) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bar.set_message(frame());
                next = Instant::now() + REFRESH;
            }
        }
    }
    bar.finish_and_clear();
}
