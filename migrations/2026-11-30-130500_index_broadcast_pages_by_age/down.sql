DROP INDEX broadcast_pages_tenant;
