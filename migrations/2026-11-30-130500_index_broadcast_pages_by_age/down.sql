DROP INDEX CONCURRENTLY IF EXISTS broadcast_pages_tenant;
