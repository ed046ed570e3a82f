DROP INDEX inbox_unread;
CREATE INDEX inbox_unread ON inbox (tenant_id, user_id) WHERE read_at IS NULL;
CREATE INDEX inbox_user ON inbox (tenant_id, user_id, id);
DROP INDEX inbox_seq;
ALTER TABLE inbox DROP COLUMN archived_at;
ALTER TABLE inbox DROP COLUMN category;
ALTER TABLE inbox DROP COLUMN kind;
ALTER TABLE inbox DROP COLUMN seq;
DROP TABLE inboxes;
ALTER TABLE deliveries DROP COLUMN template;
ALTER TABLE deliveries DROP COLUMN category;
ALTER TABLE deliveries DROP COLUMN reason;
DROP TABLE daily_counts, broadcasts, digest_items, digests, throttles, event_log, rules, notification_types, categories,
    template_versions, templates, imports, devices, users;
DROP TABLE catalogues;
DROP FUNCTION raise_catalogue();
