DROP INDEX bulks_tenant;
