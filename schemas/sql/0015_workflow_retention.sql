-- What went long ago of workflows is removed by its age, and definitions that nothing uses any more with it.
-- workflow_inbox.kind 3: more events came than may wait for one instance.

CREATE INDEX workflow_instance_ended ON workflow_instance (updated_ms) WHERE status > 2;
CREATE INDEX workflow_instance_digest ON workflow_instance (digest);
