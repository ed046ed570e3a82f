DROP INDEX inbox_seq;
ALTER TABLE inbox DROP COLUMN archived_at;
ALTER TABLE inbox DROP COLUMN seq;
DROP TABLE inboxes;
DROP FUNCTION uuid7_day(uuid);
DROP FUNCTION reached_bits(text);
ALTER TABLE deliveries DROP COLUMN fresh;
ALTER TABLE deliveries DROP COLUMN reached;
ALTER TABLE deliveries DROP COLUMN template;
ALTER TABLE deliveries DROP COLUMN category;
ALTER TABLE deliveries DROP COLUMN reason;
DROP TABLE daily_counts, broadcast_pages, broadcasts, digest_items, digests, throttles, event_log, rules, notification_types, categories,
    template_versions, templates, imports, devices, users;
DROP TABLE catalogues;
DROP FUNCTION raise_catalogue();
