//! Standard error, written by a thread of its own: a terminal, a pipe or a disk that is slow never holds the run up, and
//! one that is gone never ends it.

use std::io::{self, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    let mut drawn = 0;
    // In one piece, so that nothing flickers. The view ends within its last line: what a terminal echoes there, as `^C`,
    // moves nothing to another line.
    let write = |drawn: &mut usize, text: &str, lines: usize| {
        let up = "\u{1b}[1A".repeat(drawn.saturating_sub(1));
        let clear = if *drawn > 0 { format!("\r{up}\u{1b}[J") } else { String::new() };
        let _ = io::stderr().write_all(format!("{clear}{text}").as_bytes());
        *drawn = lines;
    };
    let mut next = Instant::now();
    loop {
        match messages.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Message::Text(text)) => write(&mut drawn, &text, 0),
            Ok(Message::Close) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let frame = frame();
                write(&mut drawn, &frame, frame.lines().count());
                next = Instant::now() + REFRESH;
            }
        }
    }
    write(&mut drawn, "", 0);
}
