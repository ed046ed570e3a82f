DROP INDEX provider_refs_tenant;
