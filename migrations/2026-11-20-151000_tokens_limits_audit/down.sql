DROP FUNCTION audit_append(integer, text, text, text, text);
DROP FUNCTION audit_hash(bytea, bigint, integer, timestamptz, text, text, text, text);
DROP TABLE audit_head;
DROP TABLE audit_entries;
DROP FUNCTION audit_refuse();
DROP TABLE tenant_limits;
DROP TABLE token_families;
