"""What client and agent say to each other: JSON lines over one channel per cluster. Shared by both; Python 3.8, stdlib.

Handshake, first line each way:
    client  {"hello": {"protocol": 1, "client": "<skylib version>"}}
    agent   {"hello": {"protocol": 1, "bundle": "<sha256>", "cluster": "<name>", "cluster_id": "...", "role": "head"}}
            or {"error": {"kind": "version", "message": "...", "ours": 1, "theirs": 2}} and the end.
            An agent that is asleep adds "asleep": true to its hello.
Then requests, answered in any order:
    client  {"id": 7, "verb": "queue", "args": {}}
    agent   {"id": 7, "ok": {...}}  or  {"id": 7, "error": {"kind": "not_found", "message": "...", ...facts}}
A verb that streams sends any number of {"id": 7, "item": {...}} before its "ok" (or "error"). The client ends a stream
early by {"id": 7, "cancel": true}; the agent answers with "ok" and sends no more items of it. A closed channel ends every request on
it, never a job. A request with "window": <bytes> beside "args" gets no more than about so much ahead of what the client has
said that it took, by {"id": 7, "taken": <items>} each time; without it items come as fast as the channel takes them.

While requests are open and there is a lease, the agent sends {"id": null, "ask": "ping"} from time to time. A client
answers by the verb ping, which renews the lease as all that it sends does.

Verbs (args -> ok):
    ready     {"timeout_s": 60, "doors": false} -> {"nodes": [{"rank", "node_id", "ip", "alive", "resources": {...}}], "ray_version",
                                           "gcs_address", "seconds"}
                                          answers when Ray itself says that all nodes of the config are alive and the standing actors
                                          answer; error kind "not_ready" with facts {"missing_ranks": [...], "detail": "..."} at the timeout.
                                          doors: each port of the cluster's processes is tried as a stranger would, and those
                                          that answer are told: "doors": [{"rank", "port", "how"}], "doors_s"; see doors.py
    info      {}                       -> {"cluster", "cluster_id", "role", "pid", "started_at", "now", "bundle", "ray_ok": bool,
                                           "alive_ranks": [...], "autostop": {...} or null, "idle_s": float, "stopping": bool,
                                           "active_jobs": int, "lease_s", "lease_left_s": float or null,
                                           "asleep": bool,
                                           "ray": {"state", "restarts", "last_error"}} (rayhold.py; this node's Ray)
    submit    {"job": JobSpec}         -> {"job_id": 3, "adopted": false, "task_id": "..."}   error kinds "impossible", "stopping"
    submit_many {"jobs": [JobSpec...]} -> {"jobs": [{"job_id", "adopted", "task_id"}], "count", "columns"}   all of them
                                          or none: an error's "index" says which one is at fault. columns: as of queue
    queue     {"all": true}            -> {"jobs": [Job...]}       newest last; "all": false leaves out ended ones.
                                          "form": "columns" says the same as {"count", "columns"}, see columns.py
    job       {"job_id": 3}            -> {"job": Job}             null job_id: the newest; error kind "not_found"
    wait      {"job_id": 3, "timeout_s": null} -> {"job": Job}     answers when it is terminal, or at the timeout as it is then
    cancel    {"job_ids": [3], "all": false}   -> {"cancelled": [{"job_id", "ended": [pid...], "survivors": [pid...],
                                           "nodes_unreached": [host...]}]}    ended there as soon as they can be reached
                                          neither ids nor all: the newest running job. Answers when the processes are gone
    logs      {"job_id": 3, "offset": 0, "follow": true, "tail": null, "batch": false} -> stream of {"offset", "next_offset",
                                           "rank", "node", "stream", "time", "text" (UTF-8) or "b64" (bytes that are no UTF-8),
                                           "partial": bool}; ok: {"job": Job, "offset": <end>}; with follow, ends when the job is
                                          terminal and all is sent, else with what was there when it was asked. An offset where
                                          no line begins is refused, kind "bad_offset", facts {"end", "begins"}. tail: from the
                                          last so many lines on; {"start": <offset>} comes first. batch: lines of one rank that
                                          were read together are one item, joined by newlines; "prefix": bytes that stand before
                                          each of them in the merged log ("offset" counts those, too); "partial" is its last line's
    log_files {"job_id": 3}            -> {"log_dir": "...", "files": [{"name", "bytes"}]}   on the head
    autostop  {"idle_minutes": 5, "down": false, "wait_for": "jobs_and_ssh", "hook": null, "hook_timeout_s": null}  -> {}
                                          negative: off. wait_for, what keeps the cluster awake: "jobs_and_ssh", "jobs" or
                                          "none" (the time since this setting or a job's start). hook: a script for the
                                          head, before the end; without its timeout it has an hour
    lease     {"lease_s": 7200}        -> {"lease_s", "lease_left_s"}   null: none. When no client sends anything for so
                                          long, every node ends the cluster on itself, jobs included
    ping      {}                       -> {}
    setup_state {"hash": "..."}        -> {"done_ranks": [0, 1]}   where setup with this hash has succeeded
    stop_nodes {"release": false}      -> {"ranks": [{"rank", "ended": [pid], "survivors": [pid], "error": null}]}
                                          cancels jobs, ends Ray and every process of this cluster on all nodes that can be reached, this agent last
    local_stop {...}                   -> (worker role and head) the same for this node only

An agent that is asleep (`daemon --asleep`, to read the history of a cluster that was stopped) knows info, queue, job, wait,
logs and log_files; every other verb is refused with kind "asleep". It connects to no Ray, begins and changes no job, leaves
stopped.json where it is, and leaves by itself when nobody has been connected for some minutes. Jobs are shown as they were
last written down; wait and a followed log answer at once, since nothing can change. `daemon` without the flag takes its place;
`daemon --asleep` beside an agent of the cluster that is awake does nothing and succeeds.

stopped.json, beside jobs.db, is what a cluster leaves behind that ended by itself: {"at": time, "reason": "autostop" or
"lease", "down": bool, "cluster_id", "standing", "stopping": bool, "hook": {"event", "code", ...} where one ran}; on a
worker only where the lease ran out and no head was there. It is there before anything is ended, with "stopping": true; false once all that could be reached has
ended. Without an agent that answers, "stopping": true means that the end was begun and nobody knows how far it came. The
next `daemon` without --asleep goes on with it when it is the same standing of the cluster, else it removes it.

cluster.json is the claim on the account and what a lost state is rebuilt from (models/mark.py has its form). The agent
changes few of its values and leaves the rest: "job_ids", ranges of the jobs that were submitted (head) or had a rank there
(worker), and on the head "autostop" and "lease_s". That happens within about a second, however many jobs come.

`end --config FILE [--cluster-id ID]` ends every process of the cluster on its node, without an agent; when ID is not the
configuration's it prints {} and touches nothing. A job that ran then is FAILED_DRIVER, with that cause, once an agent looks
again; one that was queued is still queued, so whoever ends a cluster cancels its jobs first.

JobSpec: {"name", "run", "setup", "num_nodes", "demand": {"CPU": 0.5, "GPU": 2, "memory_gib": 4, "accelerators": {"A100": 2},
          "custom": {...}}, "envs": {..}, "secrets": {..}, "key": null or str, "setup_hash": "", "skip_setup_if_done": bool,
          "setup_all_nodes": bool, "user": "", "cluster_info": {...}, "timeout_s": null, "workdir": "<absolute, default root/sky_workdir>",
          "max_retries": 0, "retry_exit_codes": [], "submission": "", "outputs": null}
    timeout_s: how long one attempt's run may take, setup and queue not counted. max_retries: how often run is begun again
    after its first failed rank exited with one of retry_exit_codes (empty: with any code but 0), on the same nodes.
    A key that is known gives the job that it came with first, whatever the rest says; it is not adopted when "submission"
    (any text, of one submit) is the same: then it is the same submit, repeated. run may be "" (setup only). secrets reach the ranks over pipes and a 0600 file that is removed at the job's end, never jobs.db, argv or logs.
    outputs: {"wanted": {pattern: directory of the client}, "client": whose}; kept and told again, nothing is done with it.
Job: the fields of models.job.JobRecord without cluster_name and fetched. "outputs": null, or what came with the JobSpec
     and "nodes", the node of each rank; in columns it is left out where no job has any. "signals": by rank, null for a rank that no signal ended.
     "first_cause": null, or {"rank", "node", "exit_code", "signal", "reason", "last_lines"}; reason is one of exit, signal,
     oom, disk_full, not_started, lost, timeout. "attempt": 0, and one more for each retry.

A node's answer to `poll` has the end record of each rank that ended: {"code", "signal", "at" (its clock), "age_s" (seconds
ago, which no clock's error changes), "reason": exit, signal, oom or disk_full, "last_lines": only of a failure} or
{"lost": why, "age_s", ...}.
"""

from __future__ import annotations

__all__ = ["MAX_LINE_BYTES", "OWN_KEY", "PROTOCOL", "RAY_RANK_VARIABLE", "TERMINAL", "TOKEN_VARIABLE"]

PROTOCOL = 1
MAX_LINE_BYTES = 64 * 1024 * 1024

# Begins a key that a client made for itself, so that a submit can be asked twice when its channel breaks: no user's key.
OWN_KEY = "~"

# Every process that skylib starts on a node (Ray's included) carries this variable with the cluster's id; a job's
# processes carry SKYPILOT_TASK_ID instead. It is how we know ours, by inheritance and never by a name.
TOKEN_VARIABLE = "SKYLIB_CLUSTER_ID"

# Processes of a node's Ray, and only they, carry this one as well, with the node's rank.
RAY_RANK_VARIABLE = "SKYLIB_RAY_RANK"

TERMINAL = ("SUCCEEDED", "FAILED", "FAILED_SETUP", "FAILED_DRIVER", "CANCELLED")
