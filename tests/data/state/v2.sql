BEGIN TRANSACTION;
CREATE TABLE "cluster_history" (
   "cluster_id" TEXT PRIMARY KEY NOT NULL,
   "name" TEXT NOT NULL,
   "launched_at" REAL NOT NULL,
   "ended_at" REAL,
   "schema" INTEGER NOT NULL,
   "record" TEXT NOT NULL
);
INSERT INTO "cluster_history" VALUES('train-1','train',100.0,130.0,1,'{"name":"train","cluster_id":"train-1","status":"UP","status_since":110.0,"infra":"ssh/lab","num_nodes":1,"launched_at":100.0,"nodes":[{"rank":0,"host":"host0","address":{"kind":"ssh","host":"192.0.2.0","user":"ann"},"internal_ip":"10.0.0.0","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""}],"resources":{"cpus":"4+","any_of":[{"infra":"ssh/lab"},{"infra":"local"}]},"ray_port":0,"dashboard_port":0,"ray_version":"","autostop":null,"owner":"","last_use":""}');
INSERT INTO "cluster_history" VALUES('a-2','a',200.0,NULL,1,'{"name":"a","cluster_id":"a-2","status":"INIT","status_since":200.0,"infra":"ssh/lab","num_nodes":2,"launched_at":200.0,"nodes":[{"rank":0,"host":"host0","address":{"kind":"ssh","host":"192.0.2.0","user":"ann"},"internal_ip":"10.0.0.0","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""},{"rank":1,"host":"host1","address":{"kind":"ssh","host":"192.0.2.1","user":"ann"},"internal_ip":"10.0.0.1","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""}],"resources":{"cpus":"4+","any_of":[{"infra":"ssh/lab"},{"infra":"local"}]},"ray_port":0,"dashboard_port":0,"ray_version":"","autostop":{"idle_minutes":5,"down":false},"owner":"","last_use":""}');
INSERT INTO "cluster_history" VALUES('train-2','train',200.0,NULL,1,'{"name":"train","cluster_id":"train-2","status":"UP","status_since":210.0,"infra":"ssh/lab","num_nodes":2,"launched_at":200.0,"nodes":[{"rank":0,"host":"host0","address":{"kind":"ssh","host":"192.0.2.0","user":"ann"},"internal_ip":"10.0.0.0","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""},{"rank":1,"host":"host1","address":{"kind":"ssh","host":"192.0.2.1","user":"ann"},"internal_ip":"10.0.0.1","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""}],"resources":{"cpus":"4+","any_of":[{"infra":"ssh/lab"},{"infra":"local"}]},"ray_port":6380,"dashboard_port":0,"ray_version":"","autostop":{"idle_minutes":5,"down":false},"owner":"","last_use":""}');
INSERT INTO "cluster_history" VALUES('b-2','b',200.0,NULL,1,'{"name":"b","cluster_id":"b-2","status":"INIT","status_since":200.0,"infra":"ssh/lab","num_nodes":2,"launched_at":200.0,"nodes":[{"rank":0,"host":"host0","address":{"kind":"ssh","host":"192.0.2.0","user":"ann"},"internal_ip":"10.0.0.0","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""},{"rank":1,"host":"host1","address":{"kind":"ssh","host":"192.0.2.1","user":"ann"},"internal_ip":"10.0.0.1","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""}],"resources":{"cpus":"4+","any_of":[{"infra":"ssh/lab"},{"infra":"local"}]},"ray_port":0,"dashboard_port":0,"ray_version":"","autostop":{"idle_minutes":5,"down":false},"owner":"","last_use":""}');
CREATE TABLE "clusters" (
   "name" TEXT PRIMARY KEY NOT NULL,
   "cluster_id" TEXT NOT NULL,
   "status" TEXT NOT NULL,
   "launched_at" REAL NOT NULL,
   "schema" INTEGER NOT NULL,
   "record" TEXT NOT NULL
);
INSERT INTO "clusters" VALUES('a','a-2','INIT',200.0,1,'{"name":"a","cluster_id":"a-2","status":"INIT","status_since":200.0,"infra":"ssh/lab","num_nodes":2,"launched_at":200.0,"nodes":[{"rank":0,"host":"host0","address":{"kind":"ssh","host":"192.0.2.0","user":"ann"},"internal_ip":"10.0.0.0","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""},{"rank":1,"host":"host1","address":{"kind":"ssh","host":"192.0.2.1","user":"ann"},"internal_ip":"10.0.0.1","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""}],"resources":{"cpus":"4+","any_of":[{"infra":"ssh/lab"},{"infra":"local"}]},"ray_port":0,"dashboard_port":0,"ray_version":"","autostop":{"idle_minutes":5,"down":false},"owner":"","last_use":""}');
INSERT INTO "clusters" VALUES('train','train-2','UP',200.0,1,'{"name":"train","cluster_id":"train-2","status":"UP","status_since":210.0,"infra":"ssh/lab","num_nodes":2,"launched_at":200.0,"nodes":[{"rank":0,"host":"host0","address":{"kind":"ssh","host":"192.0.2.0","user":"ann"},"internal_ip":"10.0.0.0","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""},{"rank":1,"host":"host1","address":{"kind":"ssh","host":"192.0.2.1","user":"ann"},"internal_ip":"10.0.0.1","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""}],"resources":{"cpus":"4+","any_of":[{"infra":"ssh/lab"},{"infra":"local"}]},"ray_port":6380,"dashboard_port":0,"ray_version":"","autostop":{"idle_minutes":5,"down":false},"owner":"","last_use":""}');
INSERT INTO "clusters" VALUES('b','b-2','INIT',200.0,1,'{"name":"b","cluster_id":"b-2","status":"INIT","status_since":200.0,"infra":"ssh/lab","num_nodes":2,"launched_at":200.0,"nodes":[{"rank":0,"host":"host0","address":{"kind":"ssh","host":"192.0.2.0","user":"ann"},"internal_ip":"10.0.0.0","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""},{"rank":1,"host":"host1","address":{"kind":"ssh","host":"192.0.2.1","user":"ann"},"internal_ip":"10.0.0.1","root":"/home/ann","temp_dir":"/tmp/ray_skypilot","env":"/home/ann/skypilot-runtime","python":"/home/ann/skypilot-runtime/bin/python","cpus":8,"memory_gib":32.0,"gpus":[{"index":0,"name":"A100","memory_gib":40.0,"uuid":""}],"price_per_hour":null,"ray_node_id":"","runtime_digest":""}],"resources":{"cpus":"4+","any_of":[{"infra":"ssh/lab"},{"infra":"local"}]},"ray_port":0,"dashboard_port":0,"ray_version":"","autostop":{"idle_minutes":5,"down":false},"owner":"","last_use":""}');
CREATE TABLE "config" (
   "key" TEXT PRIMARY KEY,
   "value" TEXT NOT NULL
);
INSERT INTO "config" VALUES('key','{"a":[1]}');
CREATE TABLE "events" (
   "id" INTEGER PRIMARY KEY,
   "cluster" TEXT NOT NULL,
   "cluster_id" TEXT NOT NULL,
   "kind" TEXT NOT NULL,
   "at" REAL NOT NULL,
   "details" TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,'train','train-1','status',100.0,'{"from":null,"to":"INIT"}');
INSERT INTO "events" VALUES(2,'train','train-1','status',110.0,'{"from":"INIT","to":"UP"}');
INSERT INTO "events" VALUES(3,'train','train-1','status',130.0,'{"from":"UP","to":null}');
INSERT INTO "events" VALUES(4,'a','a-2','status',200.0,'{"from":null,"to":"INIT"}');
INSERT INTO "events" VALUES(5,'train','train-2','status',200.0,'{"from":null,"to":"INIT"}');
INSERT INTO "events" VALUES(6,'b','b-2','status',200.0,'{"from":null,"to":"INIT"}');
INSERT INTO "events" VALUES(7,'train','train-2','status',210.0,'{"from":"INIT","to":"UP"}');
CREATE TABLE "host_claims" (
   "infra" TEXT NOT NULL,
   "host" TEXT NOT NULL,
   "cluster" TEXT NOT NULL,
   "cluster_id" TEXT NOT NULL REFERENCES "clusters"("cluster_id"),
   "claimed_at" REAL NOT NULL,
   PRIMARY KEY ("infra", "host")
);
INSERT INTO "host_claims" VALUES('ssh/lab','host0','train','train-2',201.0);
INSERT INTO "host_claims" VALUES('ssh/lab','host1','train','train-2',201.0);
CREATE TABLE "intents" (
   "id" INTEGER PRIMARY KEY,
   "operation" TEXT NOT NULL,
   "cluster" TEXT NOT NULL,
   "details" TEXT NOT NULL,
   "begun_at" REAL NOT NULL,
   "pid" INTEGER NOT NULL,
   "host" TEXT NOT NULL,
   "settled_at" REAL,
   "outcome" TEXT NOT NULL
);
INSERT INTO "intents" VALUES(1,'launch','train','{"cluster_id":"train-2"}',202.0,4711,'laptop',202.0,'done');
INSERT INTO "intents" VALUES(2,'stop','b','{"cluster_id":"b-2"}',202.0,4711,'laptop',NULL,'');
CREATE TABLE "jobs" (
   "cluster_id" TEXT NOT NULL REFERENCES "cluster_history"("cluster_id"),
   "job_id" INTEGER NOT NULL,
   "cluster_name" TEXT NOT NULL,
   "status" TEXT NOT NULL,
   "schema" INTEGER NOT NULL,
   "record" TEXT NOT NULL,
   PRIMARY KEY ("cluster_id", "job_id")
);
INSERT INTO "jobs" VALUES('train-1',1,'train','SUCCEEDED',1,'{"cluster_name":"train","job_id":1,"name":"echo","status":"SUCCEEDED","num_nodes":1,"submitted_at":200.0,"started_at":null,"ended_at":null,"exit_codes":[],"cause":"","waiting_for":"","task_id":"","user":"","key":"","log_dir":"","resources":""}');
INSERT INTO "jobs" VALUES('train-1',2,'train','RUNNING',1,'{"cluster_name":"train","job_id":2,"name":"echo","status":"RUNNING","num_nodes":1,"submitted_at":200.0,"started_at":null,"ended_at":null,"exit_codes":[],"cause":"","waiting_for":"","task_id":"","user":"","key":"","log_dir":"","resources":""}');
INSERT INTO "jobs" VALUES('train-2',1,'train','RUNNING',1,'{"cluster_name":"train","job_id":1,"name":"echo","status":"RUNNING","num_nodes":1,"submitted_at":200.0,"started_at":null,"ended_at":null,"exit_codes":[],"cause":"","waiting_for":"","task_id":"","user":"","key":"","log_dir":"","resources":""}');
CREATE TABLE "migrations" (
   "version" INTEGER PRIMARY KEY,
   "name" TEXT,
   "applied_at" REAL
);
INSERT INTO "migrations" VALUES(1,'first_tables',90.0);
INSERT INTO "migrations" VALUES(2,'events_intents_config',90.0);
CREATE TABLE "usage_intervals" (
   "id" INTEGER PRIMARY KEY,
   "cluster_id" TEXT NOT NULL REFERENCES "cluster_history"("cluster_id"),
   "start" REAL NOT NULL,
   "end" REAL
);
INSERT INTO "usage_intervals" VALUES(1,'train-1',110.0,130.0);
INSERT INTO "usage_intervals" VALUES(2,'train-2',210.0,NULL);
CREATE UNIQUE INDEX "idx_clusters_cluster_id"
    ON "clusters" ("cluster_id");
CREATE INDEX "idx_cluster_history_name_launched_at"
    ON "cluster_history" ("name", "launched_at");
CREATE INDEX "idx_cluster_history_ended_at"
    ON "cluster_history" ("ended_at");
CREATE INDEX "idx_usage_intervals_cluster_id"
    ON "usage_intervals" ("cluster_id");
CREATE INDEX "idx_host_claims_cluster_id"
    ON "host_claims" ("cluster_id");
CREATE INDEX "idx_jobs_cluster_name"
    ON "jobs" ("cluster_name");
CREATE INDEX "idx_events_cluster_id"
    ON "events" ("cluster", "id");
CREATE INDEX "idx_intents_settled_at_cluster"
    ON "intents" ("settled_at", "cluster");
COMMIT;
PRAGMA user_version = 2;
