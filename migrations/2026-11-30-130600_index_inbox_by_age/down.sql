DROP INDEX inbox_tenant;
