//! The bytes to and from one node, over TCP or TLS. The length of an answer is bounded. A server that does
//! not speak the Redis protocol is recognised by its first byte.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::endpoint::Endpoint;

/// The longest answer, in bytes. A client may register any address, and the server there could send an
/// endless answer that fills all memory. `CLIENT LIST` has 264 bytes per client. No other answer of a server
/// comes near the list of a server with tens of thousands of subscribers.
const LONGEST_ANSWER: usize = 8 << 20;

/// How many characters of a foreign answer are shown.
const SHOWN: usize = 60;

/// A stream to a node, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects to a node. With `tls`, the node's certificate has to be for its host.
///
/// # Errors
///
/// If the node can't be reached, or TLS can't be agreed on.
pub async fn connect(node: &Endpoint, tls: Option<&Arc<ClientConfig>>) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect((node.host.as_str(), node.port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(node.host.clone()).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?))
}

/// An unexpected answer of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unexpected {
    /// The answer is not the Redis protocol. Contains its beginning, if that is text.
    NotRedis(String),
    /// The answer does not end.
    Endless,
    /// A refusal that was sent unasked, without its `-`. The server closes the connection after it.
    Refusal(String),
}

/// What was unexpected. It is kept apart from the stream, because the library that owns the stream returns
/// only an I/O error.
#[derive(Debug, Clone, Default)]
pub struct Oddity(Arc<Mutex<Option<Unexpected>>>);

impl Oddity {
    pub fn get(&self) -> Option<Unexpected> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, odd: Unexpected) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(odd);
    }
}

/// A stream that fails as soon as the node sends what no Redis server would send.
pub struct Guarded {
    stream: Box<dyn Stream>,
    /// How many bytes were read since the last write.
    read: usize,
    /// The first line, until it has ended.
    first: Option<Vec<u8>>,
    oddity: Oddity,
}

impl Guarded {
    pub fn new(stream: Box<dyn Stream>) -> (Self, Oddity) {
        let oddity = Oddity::default();
        (Self { stream, read: 0, first: Some(Vec::new()), oddity: oddity.clone() }, oddity)
    }

    fn look_at(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.read += bytes.len();
        if self.read > LONGEST_ANSWER {
            self.oddity.set(Unexpected::Endless);
            return Err(io::Error::other("the answer does not end"));
        }
        let Some(mut line) = self.first.take() else { return Ok(()) };
        let end = bytes.iter().position(|byte| b"\r\n".contains(byte));
        line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        // The first bytes of the types of RESP2 and RESP3
        // <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
        if line.first().is_some_and(|first| !b"+-:$*_#,(!=%~>|".contains(first)) {
            self.oddity.set(Unexpected::NotRedis(start(as_text(&line))));
            return Err(io::Error::other("does not speak the Redis protocol"));
        }
        if line.starts_with(b"-DENIED ") {
            self.oddity.set(Unexpected::Refusal(as_text(&line[1..])));
        }
        // `bytes` is empty at the end of the stream, which is not unexpected.
        self.first = Some(line).filter(|_| end.is_none());
        Ok(())
    }
}

/// Empty if the line is not text.
fn as_text(line: &[u8]) -> String {
    let is_text = line.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    if is_text { String::from_utf8_lossy(line).into_owned() } else { String::new() }
}

/// The start of a text. `…` shows that there is more.
fn start(text: String) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let looked = this.look_at(&buf.filled()[before..]);
        if looked.is_err() {
            buf.set_filled(before);
        }
        Poll::Ready(looked)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.read = 0;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Sends a command whose answer is one line, and reads that line: `+OK`, `-NOPERM …`.
pub async fn ask_one_line(stream: &mut Guarded, command: &[u8]) -> io::Result<String> {
    const LONGEST_LINE: usize = 4096;
    stream.write_all(command).await?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
        if line.len() > LONGEST_LINE {
            return Err(io::Error::other("the answer does not end"));
        }
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// The bytes that are read if the node sends these bytes, and the unexpected part.
    async fn read(bytes: &'static [u8]) -> (io::Result<Vec<u8>>, Option<Unexpected>) {
        let (ours, mut theirs) = duplex(1 << 16);
        let (mut guarded, oddity) = Guarded::new(Box::new(ours));
        let sent = tokio::spawn(async move { theirs.write_all(bytes).await });
        let mut all = Vec::new();
        let read = guarded.read_to_end(&mut all).await;
        drop(guarded);
        // The other side fails to write if the reader is gone.
        let _ = sent.await;
        (read.map(|_| all), oddity.get())
    }

    #[tokio::test]
    async fn what_is_no_redis_is_known_by_its_first_byte() {
        let (all, odd) = read(b"+PONG\r\n").await;
        assert_eq!((all.unwrap().as_slice(), odd), (&b"+PONG\r\n"[..], None));
        for (bytes, shown) in [
            (&b"HTTP/1.1 400 Bad Request\r\nserver: x\r\n"[..], "HTTP/1.1 400 Bad Request"),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "SSH-2.0-OpenSSH_9.2p1 Debian"),
            (b"\x15\x03\x01\x00\x02\x02\x46", ""),
        ] {
            let (all, odd) = read(bytes).await;
            assert!(all.is_err());
            assert_eq!(odd, Some(Unexpected::NotRedis(shown.into())));
        }
        let (all, odd) = read(b"-DENIED Redis is running in protected mode because\r\n").await;
        assert!(all.is_ok());
        let refusal = "DENIED Redis is running in protected mode because";
        assert_eq!(odd, Some(Unexpected::Refusal(refusal.into())));
    }

    #[tokio::test]
    async fn an_answer_that_does_not_end_is_cut_off_and_many_short_ones_are_not() {
        static LONG: [u8; LONGEST_ANSWER + 1] = [b'+'; LONGEST_ANSWER + 1];
        let (all, odd) = read(&LONG).await;
        assert!(all.is_err());
        assert_eq!(odd, Some(Unexpected::Endless));

        let (ours, mut theirs) = duplex(LONGEST_ANSWER);
        let (mut guarded, oddity) = Guarded::new(Box::new(ours));
        let mut buffer = vec![0; LONGEST_ANSWER / 2 + 1];
        for _ in 0..3 {
            guarded.write_all(b"ask").await.unwrap();
            theirs.write_all(&LONG[..buffer.len()]).await.unwrap();
            guarded.read_exact(&mut buffer).await.unwrap();
        }
        assert_eq!(oddity.get(), None);
    }
}
