"""What watches show, set right by LISTs; what a LIST shows and the watch does not."""

from __future__ import annotations

from lightllm_operator.names import KIND, SERVER, child_labels
from lightllm_operator.reconcile import Key
from lightllm_operator.watch_cache import WatchCache

DEMO = Key("team", "demo")


def resource(name="demo", version=1, **spec):
    metadata = {"namespace": "team", "name": name, "resourceVersion": str(version)}
    return {"metadata": {**metadata, "managedFields": ["large"]}, "spec": spec}


def pod(name, version=1, owner="demo"):
    labels = child_labels(owner, SERVER)
    body = resource(name, version)
    return {**body, "metadata": {**body["metadata"], "labels": labels}}


def test_what_the_watch_shows_is_held_without_its_managed_fields():
    cache = WatchCache()
    assert cache.show(KIND, resource(replicas=2)) == DEMO
    assert cache.show("Pod", pod("demo-a", 2)) == DEMO
    assert cache.show("Deployment", {**pod("demo", 3), "spec": {"replicas": 4}}) == DEMO
    assert cache.resources()[DEMO]["spec"] == {"replicas": 2}
    assert "managedFields" not in cache.resources()[DEMO]["metadata"]
    assert [each["metadata"]["name"] for each in cache.pods(DEMO)] == ["demo-a"]
    assert cache.deployment(DEMO)["spec"] == {"replicas": 4}


def test_what_the_watch_shows_as_deleted_is_forgotten():
    cache = WatchCache()
    cache.show(KIND, resource())
    cache.show("Pod", pod("demo-a", 2))
    cache.show("Deployment", {**pod("demo", 3), "spec": {}})
    cache.show("Pod", pod("demo-a", 4), deleted=True)
    cache.show("Deployment", {**pod("demo", 5), "spec": {}}, deleted=True)
    cache.show(KIND, resource(version=6), deleted=True)
    assert (cache.resources(), cache.pods(DEMO), cache.deployment(DEMO)) == ({}, [], None)


def test_a_change_that_only_a_list_shows_ages_until_the_watch_shows_it():
    cache = WatchCache()
    cache.show(KIND, resource(version=5))
    assert not cache.compare(KIND, [resource(version=5)], "5", now=100)
    assert cache.unseen_seconds(200) == 0
    assert cache.compare(KIND, [resource(version=7)], "9", now=200)
    # newer changes make the first no younger
    cache.compare(KIND, [resource(version=8)], "12", now=260)
    assert cache.unseen_seconds(290) == 90
    assert cache.unseen_example() == f"{KIND} team/demo"
    cache.show(KIND, resource(version=7))
    assert cache.unseen_seconds(290) == 90
    cache.show(KIND, resource(version=8))
    assert cache.unseen_seconds(290) == 0


def test_a_new_object_that_only_a_list_shows_ages_too_until_it_is_gone():
    cache = WatchCache()
    assert cache.compare("Pod", [pod("demo-a", 3)], "4", now=0)
    assert cache.unseen_seconds(50) == 50
    assert not cache.compare("Pod", [], "8", now=60)
    assert cache.unseen_seconds(100) == 0


def test_replacing_the_cache_by_a_list_does_not_hide_a_dead_watch():
    cache = WatchCache()
    cache.show(KIND, resource(version=5))
    cache.compare(KIND, [resource(version=7)], "9", now=0)
    assert cache.replace(KIND, [resource(version=7, replicas=3)], "9") == {DEMO}
    assert cache.resources()[DEMO]["spec"] == {"replicas": 3}
    assert not cache.compare(KIND, [resource(version=7)], "9", now=60)
    assert cache.unseen_seconds(91) == 91


def test_a_deletion_that_the_watch_never_shows_is_forgotten_and_does_not_age():
    cache = WatchCache()
    cache.show(KIND, resource(version=5))
    cache.show("Pod", pod("demo-a", 6))
    assert cache.compare(KIND, [], "9", now=0)
    assert cache.replace(KIND, [], "9") == {DEMO}
    assert cache.compare("Pod", [], "9", now=0)
    assert cache.replace("Pod", [], "9") == {DEMO}
    assert (cache.resources(), cache.pods(DEMO)) == ({}, [])
    assert not cache.compare(KIND, [], "9", now=60)
    assert cache.unseen_seconds(1000) == 0


def test_a_list_older_than_the_watch_takes_nothing_back():
    cache = WatchCache()
    cache.show(KIND, resource("new", version=12))
    cache.show(KIND, resource(version=13, replicas=9))
    assert not cache.compare(KIND, [resource(version=5)], "10", now=0)
    assert cache.replace(KIND, [resource(version=5)], "10") == set()
    assert cache.resources()[DEMO]["spec"] == {"replicas": 9}
    assert Key("team", "new") in cache.resources()


def test_a_watch_behind_the_list_takes_nothing_back():
    cache = WatchCache()
    cache.replace(KIND, [resource(version=9, replicas=9)], "9")
    cache.show(KIND, resource(version=7, replicas=7))
    # made again since, as the LIST knows
    cache.show(KIND, resource(version=8), deleted=True)
    assert cache.resources()[DEMO]["spec"] == {"replicas": 9}


def test_a_list_made_before_a_deletion_and_answered_after_it_brings_nothing_back():
    cache = WatchCache()
    cache.show("Pod", pod("demo-a", 5))
    # the LIST knows of a change, by which the whole objects are asked for
    assert cache.compare("Pod", [pod("demo-a", 6)], "7", now=0)
    cache.show("Pod", pod("demo-a", 6))
    cache.show("Pod", pod("demo-a", 9), deleted=True)
    assert cache.replace("Pod", [pod("demo-a", 6)], "8") == set()
    assert cache.pods(DEMO) == []
    assert not cache.compare("Pod", [pod("demo-a", 6)], "8", now=1)
    assert cache.unseen_seconds(100) == 0
    # made again under its name
    assert cache.compare("Pod", [pod("demo-a", 12)], "12", now=60)
    assert cache.replace("Pod", [pod("demo-a", 12)], "12") == {DEMO}
    assert [each["metadata"]["name"] for each in cache.pods(DEMO)] == ["demo-a"]
