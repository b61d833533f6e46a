//! The connection to ubusd: made again whenever it ends, and always read from, for what ubusd cannot
//! send it drops silently.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::ubus::{News, Object, Session, Status, Table, Ticket};

/// Pause before a connection is made again.
const RECONNECT: Duration = Duration::from_secs(1);
/// Pause before an object that was not taken is offered again.
const REPUBLISH: Duration = Duration::from_secs(5);
/// Bytes that may wait for a ubusd that does not read.
const UNREAD_LIMIT: usize = 4 << 20;

/// What ubusd is to be told.
pub enum Word {
    /// The answer to a call, with a result that [`blobmsg::encode`](crate::ubus::blobmsg::encode)
    /// wrote, if there is one.
    Answer(Ticket, Status, Option<Rc<[u8]>>),
    /// An event of the object, with its data.
    Event(String, Table),
}

/// Keeps a connection to the ubusd that listens on `socket`, on which `object` is published, until
/// nobody can send words any more. What is told while there is no connection is lost.
pub async fn run(
    socket: PathBuf,
    object: Option<Object>,
    news: mpsc::UnboundedSender<News>,
    mut words: mpsc::Receiver<Word>,
) {
    let mut number: u32 = 0;
    while !words.is_closed() {
        number = number.wrapping_add(1);
        let session = Session::new(number, object.clone());
        match serve(&socket, session, &news, &mut words).await {
            Ok(()) => log::debug!("ubus: ubusd has hung up"),
            Err(error) => log::trace!("ubus: {}: {error}", socket.display()),
        }
        let _ = news.send(News::NoNetifd);
        let _ = timeout(RECONNECT, async { while words.recv().await.is_some() {} }).await;
    }
}

/// Asks netifd once for its interfaces; `None` without an answer within a second.
pub async fn interfaces(socket: &Path) -> Option<Table> {
    let (arrived, mut news) = mpsc::unbounded_channel();
    let (_words, mut queue) = mpsc::channel(1);
    let session = Session::new(0, None);
    let answer = async {
        while let Some(item) = news.recv().await {
            match item {
                News::Interfaces(dump) => return Some(dump),
                News::NoNetifd => return None,
                _ => {}
            }
        }
        None
    };
    let asked = async {
        tokio::select! {
            answer = answer => answer,
            _ = serve(socket, session, &arrived, &mut queue) => None,
        }
    };
    timeout(RECONNECT, asked).await.ok().flatten()
}

/// Serves one connection until it ends.
async fn serve(
    socket: &Path,
    mut session: Session,
    news: &mpsc::UnboundedSender<News>,
    words: &mut mpsc::Receiver<Word>,
) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    let (mut reader, mut writer) = stream.split();
    let mut incoming = Vec::new();
    let mut republish = None;
    loop {
        let unread = session.out().len();
        if unread > UNREAD_LIMIT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let later = republish.unwrap_or_else(Instant::now);
        tokio::select! {
            read = reader.read_buf(&mut incoming) => {
                if read? == 0 {
                    return Ok(());
                }
                for item in session.receive(&mut incoming).map_err(io::Error::other)? {
                    if let News::Unpublished(_) = item {
                        republish = Some(Instant::now() + REPUBLISH);
                    }
                    let _ = news.send(item);
                }
            }
            written = writer.write(session.out()), if unread > 0 => {
                session.out().drain(..written?);
            }
            word = words.recv() => match word {
                Some(Word::Answer(ticket, status, result)) => {
                    session.answer(ticket, status, result.as_deref());
                }
                Some(Word::Event(name, data)) => session.tell(&name, data),
                None => return Ok(()),
            },
            () = sleep_until(later), if republish.is_some() => {
                republish = None;
                session.publish();
            }
        }
    }
}
