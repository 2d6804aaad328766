//! Writes to standard error in a separate thread. A slow terminal, pipe or disk never delays the run, and a
//! closed one never ends it.

use std::io::{self, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval between two frames of the live view.
const REFRESH: Duration = Duration::from_millis(50);

/// How long to wait at the end until everything is written.
const PATIENCE: Duration = Duration::from_secs(5);

enum Message {
    Text(String),
    Close,
}

/// Draws the live view.
pub(super) type Frame = Box<dyn Fn() -> String + Send>;

/// The handle of the thread that writes.
#[derive(Debug)]
pub(super) struct Screen {
    to_thread: Sender<Message>,
    closed: Mutex<Receiver<()>>,
}

impl Screen {
    /// Starts to write, and to draw the live view if there is one.
    pub(super) fn open(frame: Option<Frame>) -> Self {
        let (to_thread, messages) = channel();
        let (close, closed) = channel();
        let thread = std::thread::Builder::new().name("screen".to_owned());
        // If the thread can't start, nothing is printed. The run continues, and the exit code shows the
        // result.
        let _ = thread.spawn(move || {
            match frame {
                Some(frame) => draw(&messages, &frame),
                None => write(&messages),
            }
            let _ = close.send(());
        });
        Self { to_thread, closed: Mutex::new(closed) }
    }

    /// Writes the text after all earlier texts.
    pub(super) fn say(&self, text: String) {
        let _ = self.to_thread.send(Message::Text(text));
    }

    /// Clears the live view and waits until everything is written, or until [`PATIENCE`] is over if nothing
    /// reads standard error.
    pub(super) fn close(&self) {
        let _ = self.to_thread.send(Message::Close);
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = closed.recv_timeout(PATIENCE);
    }
}

fn write(messages: &Receiver<Message>) {
    while let Ok(Message::Text(text)) = messages.recv() {
        // If the reader is gone, as in `… | head -1`, the text is not needed.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

fn draw(messages: &Receiver<Message>, frame: &Frame) {
    let mut drawn = 0;
    // Each frame is one write, so that nothing flickers. The view ends within its last line, so an echo of
    // the terminal such as `^C` does not move the cursor to another line.
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
