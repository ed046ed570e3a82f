DROP TABLE unread_events;
