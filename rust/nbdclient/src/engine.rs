//! What a virtqueue submits to: copies, and leaves requests for a connection.

use crate::facts::flag;
use crate::post::Post;
use crate::request::{Ended, Kind, Request, Whose};
use crate::shared::Shared;
use crate::stale::{Cancelled, Left};
use rustix::io::Errno;
use std::sync::Arc;
use vduse_device::backend::{Engine, Op, Submitted, Token};
use vduse_device::{Completer, Extent};

/// So many requests go together, before another connection is used.
const TOGETHER: usize = 4;

/// Of one virtqueue.
pub(crate) struct NbdEngine {
    shared: Arc<Shared>,
    /// Of its worker.
    posts: Vec<Arc<Post>>,
    completer: Completer,
    requests: Vec<Request>,
    cancelled: Vec<Cancelled>,
}

impl NbdEngine {
    pub(crate) fn new(
        shared: Arc<Shared>,
        posts: Vec<Arc<Post>>,
        completer: Completer,
    ) -> NbdEngine {
        NbdEngine {
            shared,
            posts,
            completer,
            requests: Vec::new(),
            cancelled: Vec::new(),
        }
    }

    /// What the server is asked for; `Err`: the end of what it is not asked for.
    fn request(&self, token: Token, op: Op) -> Result<Request, Result<(), Errno>> {
        let facts = self.shared.facts();
        let needs = |flag: u16| facts.has(flag).then_some(()).ok_or(Err(Errno::OPNOTSUPP));
        let (kind, extent, payload) = match op {
            Op::Read { extent, .. } => (Kind::Read, Some(extent), Vec::new()),
            Op::Write { extent, buffer } => (Kind::Write, Some(extent), buffer.to_vec()),
            Op::Flush => {
                if !facts.has(flag::SEND_FLUSH) {
                    return Err(Ok(()));
                }
                (Kind::Flush, None, Vec::new())
            }
            Op::Discard { extent } => {
                needs(flag::SEND_TRIM)?;
                (Kind::Trim, Some(extent), Vec::new())
            }
            Op::WriteZeroes { extent, may_unmap } => {
                needs(flag::SEND_WRITE_ZEROES)?;
                (Kind::WriteZeroes { may_unmap }, Some(extent), Vec::new())
            }
        };
        let (offset, length) = extent.map_or((0, 0), bytes);
        if extent.is_some() && length == 0 {
            return Err(Ok(()));
        }
        // The server would refuse it, or end the connection.
        if (offset | length) % u64::from(facts.minimum_block) != 0 {
            return Err(Err(Errno::INVAL));
        }
        Ok(Request {
            whose: Whose::Engine(token, self.completer.clone()),
            kind,
            offset,
            length,
            payload,
            interrupted: None,
        })
    }
}

impl NbdEngine {
    /// Requests go where the fewest are under way: few stay together, in one message.
    fn share_out(&mut self) {
        let mut loads: Vec<usize> = self.posts.iter().map(|post| post.load()).collect();
        if loads.iter().all(|&load| load == Post::DOWN) {
            let main = self.shared.main_link();
            return put(main.as_deref(), &mut self.requests);
        }
        let mut shares: Vec<Vec<Request>> = loads.iter().map(|_| Vec::new()).collect();
        for request in self.requests.drain(..) {
            let places = 0..loads.len();
            let place = places.min_by_key(|&at| loads[at] / TOGETHER).unwrap_or(0);
            loads[place] = loads[place].saturating_add(1);
            shares[place].push(request);
        }
        for (post, mut share) in self.posts.iter().zip(shares) {
            if !share.is_empty() {
                put(Some(post), &mut share);
            }
        }
    }

    /// Requests may be with any of the worker's connections, or have moved to the main one.
    fn pass_on_cancelled(&mut self) {
        for post in self.posts.iter().chain(&self.shared.main_link()) {
            post.put(|mail| mail.cancelled.extend_from_slice(&self.cancelled));
        }
        self.cancelled.clear();
    }
}

/// Leaves the requests there; they fail where nobody is.
fn put(post: Option<&Post>, requests: &mut Vec<Request>) {
    if post.is_some_and(|post| post.put(|mail| mail.requests.append(requests))) {
        return;
    }
    let mut ended = Ended::default();
    for request in requests.drain(..) {
        ended.add(request.whose, Err(Errno::IO), None);
    }
    ended.tell();
}

fn bytes(extent: Extent) -> (u64, u64) {
    (extent.offset().0, extent.len().0)
}

impl Engine for NbdEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        match self.request(token, op) {
            Ok(request) => {
                self.requests.push(request);
                Submitted::Pending
            }
            Err(result) => Submitted::Done(result),
        }
    }

    fn flush(&mut self) {
        if !self.requests.is_empty() {
            self.share_out();
        }
        if !self.cancelled.is_empty() {
            self.pass_on_cancelled();
        }
    }

    fn cancel(&mut self, token: Token) {
        self.cancelled.push(Cancelled {
            token,
            completer: self.completer.clone(),
            left: Left::new(&self.shared.stale),
        });
    }
}
