"""Whose conversation it is: different addresses never meet."""

from __future__ import annotations

from itertools import product

from convmem.keys import SessionKey
from convmem.stores.base import Outcome, Store
from convmem.testing.writer import Writer, fresh_key

ODD_TEXTS = (
    "a",
    "A",
    "a ",
    "a:b",
    "a/b",
    "a%2Fb",
    "a%",
    "a\x00",
    "a\x00b",
    "\u00e9",
    "e\u0301",
    "\U0001f9e0",
    "\ud83e",
    "\udc80",
    "{a}",
    "a*",
    "a_",
    "'; --",
    "..",
    "a\nb",
)
"""Texts that a separator, a quoting rule, a pattern, a collation or a file system could take for one another."""


class AddressingClauses:
    """Clauses on the address: tenant, owner, session id."""

    async def test_owners_and_tenants_of_any_text_are_apart(self, store: Store) -> None:
        """Somebody else's conversation cannot be addressed, whatever characters an identity provider hands out."""
        salt = fresh_key().owner
        keys = [SessionKey(f"{salt}{owner}", tenant=tenant) for owner, tenant in product(ODD_TEXTS, ("", *ODD_TEXTS[:9]))]
        for number, key in enumerate(keys):
            writer = Writer(store, key)
            await writer.append(writer.entry(body=b"%d" % number))
        for number, key in enumerate(keys):
            assert [stored.entry.body for stored in (await store.load(key)).entries] == [b"%d" % number]

    async def test_parts_that_join_to_one_text_are_apart(self, store: Store) -> None:
        """`a:b` + `c` is not `a` + `b:c`: an address that is only joined lets one owner spell another's."""
        salt = fresh_key().owner
        pairs = [
            (SessionKey(f"{salt}:x", tenant="t"), SessionKey(salt, tenant=f"t:{salt}")),
            (SessionKey("user:b:user:c", tenant=salt), SessionKey("user:c", tenant=f"{salt}:user:b")),
            (SessionKey("user:b/user:c", tenant=salt), SessionKey("user:c", tenant=f"{salt}/user:b")),
            (SessionKey(f"{salt}:s", "t"), SessionKey(salt, "s_t")),
            (SessionKey(f"{salt}/s", "t"), SessionKey(salt, "s-t")),
            (SessionKey(f"{salt}a", "b"), SessionKey(salt, "ab")),
        ]
        for one, other in pairs:
            await Writer(store, one).append()
            assert (await store.load(other)).entries == ()

    async def test_session_ids_differ_by_case(self, store: Store) -> None:
        """A collation that folds case would merge two conversations of one owner."""
        lower = Writer(store, fresh_key("chat"))
        await lower.append()
        assert (await store.load(SessionKey(lower.key.owner, "Chat"))).entries == ()

    async def test_a_lease_holds_one_conversation(self, store: Store) -> None:
        """An owner's second conversation, in a second tab, must not queue behind the first."""
        one = Writer(store, fresh_key("one"))
        other = Writer(store, SessionKey(one.key.owner, "other"))
        await one.seize()
        await other.seize()
        assert (await other.offer()).outcome is Outcome.STORED

    async def test_a_delete_ends_one_conversation(self, store: Store) -> None:
        """Deleting one chat must leave the owner's others, and another tenant's same name, alone."""
        one = Writer(store, fresh_key("one"))
        others = [Writer(store, SessionKey(one.key.owner, "other")), Writer(store, SessionKey(one.key.owner, "one", "tenant"))]
        for writer in (one, *others):
            await writer.append()
        await store.delete(one.key)
        assert await one.visible() == ()
        for writer in others:
            assert len(await writer.visible()) == 1
            await writer.append()
