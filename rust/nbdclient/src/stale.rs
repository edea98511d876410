//! What a server still has in hand of drivers that were reset, or are gone.
//!
//! A driver leaves changes behind that the server may carry out at any time until it has answered
//! them. What comes after waits for that, on all connections: or an old write would end up on a
//! new one. Where their connection is lost nothing can be waited for.

use crate::post::Post;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use vduse_device::Completer;
use vduse_device::backend::Token;

/// Counts what is left behind, of one export.
#[derive(Default)]
pub(crate) struct Stale {
    count: AtomicUsize,
    /// Connections that may be waiting.
    posts: Mutex<Vec<Weak<Post>>>,
}

impl Stale {
    /// Whether nothing is left behind.
    pub(crate) fn is_none(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// A connection that is woken when nothing is left behind any more.
    pub(crate) fn add(&self, post: &Arc<Post>) {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        posts.retain(|known| known.strong_count() > 0);
        posts.push(Arc::downgrade(post));
    }

    fn wake(&self) {
        let posts = {
            let posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
            posts.clone()
        };
        for post in posts.iter().filter_map(Weak::upgrade) {
            post.put(|_| {});
        }
    }
}

/// As long as this lives something may be left behind. Not dropped with a letter box locked.
pub(crate) struct Left(Arc<Stale>);

impl Clone for Left {
    fn clone(&self) -> Left {
        Left::new(&self.0)
    }
}

impl Left {
    pub(crate) fn new(stale: &Arc<Stale>) -> Left {
        stale.count.fetch_add(1, Ordering::SeqCst);
        Left(stale.clone())
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.wake();
        }
    }
}

/// A request that its driver waits for no longer.
#[derive(Clone)]
pub(crate) struct Cancelled {
    pub(crate) token: Token,
    /// Of the worker whose token it is.
    pub(crate) completer: Completer,
    /// What it may leave behind: counted from before the driver's reset ends.
    pub(crate) left: Left,
}

/// Those to be looked up.
pub(crate) struct CancelledSet(HashMap<Token, Vec<Cancelled>>);

impl CancelledSet {
    pub(crate) fn new(all: Vec<Cancelled>) -> CancelledSet {
        let mut by_token: HashMap<Token, Vec<Cancelled>> = HashMap::new();
        for one in all {
            by_token.entry(one.token).or_default().push(one);
        }
        CancelledSet(by_token)
    }

    /// Whether it is among them; what it may leave behind. Workers' tokens look alike.
    pub(crate) fn find(&self, token: Token, completer: &Completer) -> Option<&Left> {
        let these = self.0.get(&token)?.iter();
        let mut these = these.filter(|it| it.completer.is_same(completer));
        these.next().map(|it| &it.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Facts;
    use crate::outstanding::Outstanding;
    use crate::replies::Replies;
    use crate::request::{Kind, Request, Whose};
    use std::time::Instant;
    use vduse_device::backend::Inbox;
    use vduse_nbdwire::{Head, Header};

    const FACTS: Facts = Facts {
        size: 1 << 20,
        flags: 0xffff,
        is_structured: true,
        allocation: None,
        minimum_block: 1,
        maximum_payload: 4096,
    };
    const TOKEN: Token = Token(7);

    /// A connection with a request of this driver's; its cookie, if it was sent.
    fn connection(driver: &Completer, kind: Kind, is_sent: bool) -> (Outstanding, u64) {
        let mut outstanding = Outstanding::new(FACTS);
        let request = Request {
            whose: Whose::Engine(TOKEN, driver.clone()),
            kind,
            offset: 0,
            length: 4,
            payload: b"data".to_vec(),
            interrupted: None,
        };
        outstanding.add(request, None);
        let (pieces, bytes) = outstanding.to_send(2);
        let header = Header::parse(pieces[0].first_chunk().unwrap()).unwrap();
        if is_sent {
            outstanding.has_sent(bytes);
        }
        (outstanding, header.cookie)
    }

    fn cancel(outstanding: &mut Outstanding, driver: &Completer, stale: &Arc<Stale>) {
        let cancelled = Cancelled {
            token: TOKEN,
            completer: driver.clone(),
            left: Left::new(stale),
        };
        assert!(!stale.is_none(), "from the moment the driver's reset ends");
        outstanding.cancel(&CancelledSet::new(vec![cancelled]));
    }

    #[test]
    fn a_write_that_was_sent_is_left_behind_until_its_answer() {
        let ((_, local), stale) = (Inbox::new(), Arc::<Stale>::default());
        let (mut outstanding, cookie) = connection(&local.completer, Kind::Write, true);
        cancel(&mut outstanding, &local.completer, &stale);
        assert!(!stale.is_none());
        let reply = Head::none(cookie);
        let taken = Replies::new(true).take(reply.bytes(), &mut outstanding);
        assert_eq!(taken, Ok(reply.bytes().len()));
        assert!(stale.is_none());
    }

    #[test]
    fn nothing_is_left_behind_of_a_lost_connection() {
        let ((_, local), stale) = (Inbox::new(), Arc::<Stale>::default());
        let (mut outstanding, _) = connection(&local.completer, Kind::Write, true);
        cancel(&mut outstanding, &local.completer, &stale);
        outstanding.interrupt(Instant::now());
        assert!(stale.is_none());
        assert!(!outstanding.has_to_send(), "and it is not sent again");
    }

    #[test]
    fn reads_and_what_was_not_sent_leave_nothing_behind() {
        for (kind, is_sent) in [(Kind::Read, true), (Kind::Write, false)] {
            let ((_, local), stale) = (Inbox::new(), Arc::<Stale>::default());
            let (mut outstanding, _) = connection(&local.completer, kind, is_sent);
            cancel(&mut outstanding, &local.completer, &stale);
            assert!(stale.is_none(), "{kind:?}");
        }
    }

    #[test]
    fn another_workers_request_of_the_same_token_goes_on() {
        let ((_, one), (_, other), stale) = (Inbox::new(), Inbox::new(), Arc::default());
        let (mut outstanding, _) = connection(&one.completer, Kind::Write, false);
        cancel(&mut outstanding, &other.completer, &stale);
        assert!(outstanding.has_to_send());
        assert!(stale.is_none());
    }

    #[test]
    fn connections_are_woken_when_the_last_is_gone() {
        let (stale, post) = (Arc::<Stale>::default(), Arc::new(Post::new()));
        stale.add(&post);
        let (first, last) = (Left::new(&stale), Left::new(&stale));
        drop(first);
        assert!(!post.take().is_waiting());
        drop(last);
        assert!(post.take().is_waiting());
    }
}
